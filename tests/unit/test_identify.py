"""Identify: its arithmetic and its cost on models computed by hand, its answers on the real one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import get_args

import pytest
import torch
from conftest import ROOT
from tiny import Stages, TinyModel, TinyNetworkModel

from testbed.model import drawings
from testbed.model.vocabulary import HELD_OUT, OBJECTS, STYLES
from testbed.studies.identify import objects, styles, views
from unlearn.core.conditioning import Conditioning
from unlearn.core.kind import Kind
from unlearn.evaluate.classifier import TIMES, Ranking, Word, identify, parse_words, rounds
from unlearn.evaluate.classifier_report import verdict
from unlearn.evaluate.collateral import neighbours
from unlearn.evaluate.detection import remains, rivals
from unlearn.prompts.translations import TRANSLATIONS
from unlearn.prompts.vocabulary import VOCABULARY

BLACK = torch.zeros(2, 2, 2, 3)


class Offsets(TinyModel):
    """Of black pictures the network knows the noise, but for an offset by the prompt's last word.

    So the loss under a word is its offset squared, in every draw: 1 under the empty prompt.
    """

    def __init__(self, offsets: dict[str, float], jitter: float = 0.0) -> None:
        super().__init__()
        self.offsets, self.jitter = {"": 1.0, **offsets}, jitter
        self.rows: list[tuple[float, float]] = []
        """(timestep, offset) of every row that was predicted."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.encoded.append(list(prompts))
        words = [prompt.rpartition(" ")[2] for prompt in prompts]
        return Conditioning(torch.tensor([self.offsets.get(w, 2.0) for w in words]).view(-1, 1, 1))

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        offset = conditioning.cross[:, 0, 0]
        self.rows += list(zip(t.tolist(), offset.tolist()))
        # What a word has to say depends on the draw, where it is asked for.
        swing = self.jitter * torch.sin(t * offset * 1e3)
        return x_t / (t / 1000).view(-1, 1, 1, 1) + (offset + swing).view(-1, 1, 1, 1)


def words_of(count: int) -> list[str]:
    return [f"word{i}" for i in range(count)]


# Cost


def evaluations(count: int, draws: int = 64) -> int:
    """Rows that the network is asked for, counted in the network."""
    model = TinyNetworkModel()
    ranking = identify(model, torch.rand(4, 8, 8, 3), words_of(count), draws=draws)
    assert ranking.evaluations == sum(model.predictions)
    return ranking.evaluations


@pytest.mark.parametrize("draws", [12, 64, 100])
def test_two_hundred_words_cost_at_most_four_times_ten(draws: int) -> None:
    ten = evaluations(10, draws)
    assert ten == 11 * draws  # each word and the empty prompt, in full
    assert evaluations(200, draws) <= 4 * ten


def test_few_words_are_all_tried_in_full() -> None:
    assert rounds(2, 64) == [(2, 64)]
    assert rounds(10, 64) == [(10, 64)]


def test_halving_by_hand() -> None:
    # Ten times 64 rows to begin with; then half as many words with twice as many draws.
    assert rounds(80, 64) == [(80, 8), (40, 16), (20, 32), (10, 64)]
    # No round without a draw more, however many words there are.
    assert rounds(1000, 12)[:4] == [(1000, 1), (500, 2), (250, 3), (125, 4)]


def test_every_word_gets_the_same_noise_and_timesteps() -> None:
    model = Offsets({"a": 0.5, "b": 0.7, "c": 0.9})
    identify(model, BLACK, ["a", "b", "c"], draws=8)
    by_word: dict[float, list[float]] = {}
    for t, offset in model.rows:
        by_word.setdefault(round(offset, 4), []).append(t)
    times = list(by_word.values())
    assert len(times) == 4
    assert all(sorted(some) == sorted(times[0]) for some in times)
    assert len(set(times[0])) == 8
    least, most = TIMES
    assert least <= min(times[0]) < 0.8 * least + 0.2 * most
    assert 0.2 * least + 0.8 * most < max(times[0]) <= most


def test_pictures_take_turns() -> None:
    model = TinyModel()
    images = torch.linspace(0, 1, 4).view(4, 1, 1, 1).expand(4, 2, 2, 3).contiguous()
    identify(model, images, ["a", "b"], draws=8)
    seen: dict[float, set[float]] = {}
    for x0, _, t in model.asked:
        for value, time in zip(x0.flatten().tolist(), t.tolist()):
            seen.setdefault(round(value, 3), set()).add(time)
    assert [len(times) for times in seen.values()] == [2, 2, 2, 2]


# The ranking


def test_ranking_by_hand() -> None:
    model = Offsets({"far": 1.5, "near": 0.1, "half": 0.5})
    ranking = identify(model, BLACK, ["far", "near", "half"], draws=8)
    assert [word.word for word in ranking.words] == ["near", "half", "far"]
    explained = [word.explained for word in ranking.words]
    # Half of what a word changes counts: offsets of 0.55, 0.75 and 1.25.
    assert explained == pytest.approx([1 - 0.55**2, 1 - 0.75**2, 1 - 1.25**2], rel=1e-4)
    assert ranking.best == "near"
    assert ranking.confidence == pytest.approx(1.0)
    assert ranking.words[0].error == 0


def test_the_best_of_many_survives_and_the_dropped_stand_behind() -> None:
    offsets = {word: 0.2 + 0.01 * i for i, word in enumerate(words_of(80))}
    ranking = identify(Offsets(offsets), BLACK, list(reversed(offsets)), draws=64)
    assert ranking.best == "word0"
    assert [word.draws for word in ranking.words] == [64] * 10 + [32] * 10 + [16] * 20 + [8] * 40
    assert [word.word for word in ranking.words[:10]] == words_of(10)


def test_a_thing_below_zero_gets_a_warning_and_a_style_none() -> None:
    words = [Word("ink", -0.1, 0.0, 12), Word("flat", -0.2, 0.0, 12)]
    thing, style = (verdict(Ranking(words, 1.0, 24, kind)) for kind in ("object", "style"))
    assert "no candidate explains the pictures" in thing
    assert style == "The model calls it: ink (confidence over 99%)."


def test_twins_get_no_confidence() -> None:
    ranking = identify(Offsets({"a": 0.5, "b": 0.5}), BLACK, ["a", "b"], draws=16)
    assert ranking.confidence == pytest.approx(0.5)


def test_confidence_grows_with_the_draws() -> None:
    def confidence(draws: int) -> float:
        model = Offsets({"a": 0.5, "b": 0.55}, jitter=0.2)
        return identify(model, BLACK, ["a", "b"], draws=draws).confidence

    assert 0.5 <= confidence(8) < confidence(512)
    assert confidence(512) > 0.95


def test_same_seed_same_ranking() -> None:
    images = torch.rand(1, 4, 4, 3)

    def ranking(seed: int):
        return identify(TinyNetworkModel(), images, words_of(30), seed=seed).words

    first = ranking(3)
    assert first == ranking(3)
    assert first != ranking(4)


@pytest.mark.parametrize(
    ("kind", "sentence"), [("object", "a photo of a cat"), ("character", "a photo of cat")]
)
def test_the_kind_decides_the_sentence(kind: str, sentence: str) -> None:
    model = TinyModel()
    identify(model, BLACK, ["cat", "dog"], kind, draws=2)
    assert "" in model.encoded[0]
    assert sentence in model.encoded[0]


def test_a_style_is_asked_for_beside_the_thing_in_each_picture() -> None:
    model = Offsets({"dog": 0.1, "ink": 0.2, "neon": 0.4})
    heard = []
    ranking = identify(
        model,
        BLACK,
        ["neon", "ink"],
        "style",
        draws=4,
        things=["cat", "dog"],
        progress=Stages(lambda *row: heard.append(row)),
    )
    assert ranking.best == "ink"
    assert model.encoded[-1] == [
        "a picture of a dog",
        "a picture of a dog in the style of neon",
        "a picture of a dog in the style of ink",
    ]
    # Against the sentence without a style, whose last word is the dog.
    assert ranking.words[0].explained == pytest.approx(1 - 0.2**2 / 0.1**2, rel=1e-3)
    assert len({total for _, _, total, *_ in heard}) == 1
    assert heard[-1][1] == heard[-1][2] == ranking.evaluations == len(model.rows)


def test_progress_hears_of_no_leader_before_each_word_has_had_a_draw() -> None:
    heard: list[tuple[str, int, int, str]] = []
    model = Offsets({"word7": 0.1})
    identify(model, BLACK, words_of(100), draws=8, progress=Stages(lambda *row: heard.append(row)))
    # A hundred words and none take two passes of the network for a draw.
    assert [leader for *_, leader in heard[:2]] == ["", "word7"]
    assert {leader for *_, leader in heard[1:]} == {"word7"}


def test_progress_hears_of_the_leader_and_may_cancel() -> None:
    heard = []

    def cancel(what: str, done: int, total: int, leader: str = "") -> None:
        heard.append((done, total, leader))
        if done > 200:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        identify(Offsets({"word7": 0.1}), BLACK, words_of(40), progress=Stages(cancel))
    assert heard[-1][0] < 300
    assert len({total for _, total, _ in heard}) == 1


# Words


def test_candidates_are_split_at_commas_and_lines_and_doubles_go() -> None:
    assert parse_words(" cat, red fox\nCat ,, owl", "object") == ["cat", "red fox", "owl"]


@pytest.mark.parametrize("kind", ["object", "style", "character"])
def test_without_candidates_there_are_built_in_ones(kind: str) -> None:
    words = parse_words(" \n", kind)
    assert words == list(VOCABULARY[kind])
    assert len(words) == len({word.lower() for word in words}) >= 60
    assert max(map(len, words)) < 40


def promised(file: str, sentence: str) -> list[int]:
    """The numbers that a sentence in a file of the repository gives."""
    (numbers,) = re.findall(sentence, (ROOT / file).read_text(encoding="utf-8"))
    return [int(number) for number in ([numbers] if isinstance(numbers, str) else numbers)]


def test_there_are_as_many_words_as_is_promised() -> None:
    counts = [len(VOCABULARY[kind]) for kind in get_args(Kind)]
    page = r"(\d+) things, (\d+) styles and artists, (\d+) well-known characters or (\d+) actions"
    assert promised("nodes/web/docs/IdentifyConcept.md", page) == counts
    tooltip = r'(\d+) things, (\d+) styles, (\d+) characters or "\s+"(\d+) actions'
    assert promised("nodes/identify.py", tooltip) == counts
    assert promised("unlearn/cli/identify.py", r"among (\d+) everyday words") == counts[:1]
    page = r"for (\d+) common things the German, French, Spanish and Italian names"
    assert promised("nodes/web/docs/ProbeErasure.md", page) == [len(TRANSLATIONS)]


@pytest.mark.parametrize(
    ("images", "words", "sentence"),
    [
        (BLACK, ["cat"], "1 candidate is given; type at least two"),
        (torch.full((1, 4, 4, 3), torch.nan), ["cat", "dog"], "Image 1 holds NaN"),
        (torch.zeros(0, 4, 4, 3), ["cat", "dog"], "Images must be a batch"),
        (BLACK + 255, ["cat", "dog"], "must lie between 0 and 1"),
    ],
    ids=["one word", "nan", "no image", "8 bit"],
)
def test_bad_input_gets_a_sentence_before_any_work(
    images: torch.Tensor, words: list[str], sentence: str
) -> None:
    model = TinyModel()
    with pytest.raises(ValueError, match=sentence):
        identify(model, images, words)
    assert not model.encoded


# Neighbours, and what is left


def test_neighbours_are_those_that_moved_most_without_the_concept() -> None:
    model = Offsets({"fox": 0.0, "dog": 0.5, "cat": 0.5, "owl": 0.9})
    after = Offsets({"fox": 5.0, "dog": 0.75, "cat": 0.5, "owl": 0.91})
    found = neighbours(
        model.encode, after.encode, ["cat", "dog", "red fox", "owl"], "object", ["fox"]
    )
    assert [one.word for one in found] == ["dog", "owl", "cat"]
    # In shares of the way from the empty prompt: 0.25 of 0.5, 0.01 of 0.1, nothing.
    assert [one.moved for one in found] == pytest.approx([0.5, 0.1, 0.0], abs=1e-4)


def test_neighbours_of_an_open_edit() -> None:
    model = TinyModel()
    with model.edit("encoder", "mlp") as edit:
        for parameter in edit.parameters():
            parameter.data += 0.01

        def before(prompts: Sequence[str]) -> Conditioning:
            with edit.off():
                return model.encode(prompts)

        found = neighbours(before, model.encode, ["cat", "dog"], "object")
    assert all(0 < one.moved < 10 for one in found)


def test_remains_says_which_pictures_show_the_concept() -> None:
    seen = remains(Offsets({"fox": 0.5, "dog": 0.6}), BLACK, ["fox"], others=["dog"], draws=4)
    assert [one.shown for one in seen] == [True, True]
    assert seen[0].explained == pytest.approx(1 - 0.75**2, rel=1e-3)
    worse = remains(Offsets({"fox": 0.7, "dog": 0.6}), BLACK, ["fox"], others=["dog"], draws=4)
    assert not any(one.shown for one in worse)
    nothing = remains(Offsets({"fox": 1.1, "dog": 1.2}), BLACK, ["fox"], others=["dog"], draws=4)
    assert not any(one.shown for one in nothing), "an empty prompt says more"


@pytest.mark.parametrize(("neon", "shown"), [(2.3, True), (2.05, False)])
def test_a_style_shows_where_its_name_errs_least(neon: float, shown: bool) -> None:
    """Also where every style's name errs more than no word at all."""
    model = Offsets({"ink": 2.1, "neon": neon})
    (one, *_) = remains(model, BLACK, ["ink"], "style", others=["neon"], draws=4)
    assert one.explained < 0
    assert one.shown == shown


def test_a_picture_that_is_not_finite_shows_nothing() -> None:
    """A broken model draws it, and what is said of the others must not be lost."""
    images = BLACK.clone()
    images[0] = torch.nan
    seen = remains(Offsets({"fox": 0.5, "dog": 0.6}), images, ["fox"], others=["dog"], draws=4)
    assert [one.shown for one in seen] == [False, True]


def test_every_picture_has_a_draw() -> None:
    model = Offsets({"fox": 0.5, "dog": 0.6})
    ranking = identify(model, BLACK, ["fox", "dog"], draws=1)
    assert ranking.words[0].draws == len(BLACK)


def test_remains_asks_for_a_style_by_itself_unless_things_are_given() -> None:
    model = Offsets({"ink": 0.2})
    remains(model, BLACK[:1], ["ink"], "style", others=["neon"], draws=4)
    assert [prompts[1] for prompts in model.encoded] == ["a painting in the style of ink"]
    assert all(400 <= t <= 1000 for t, _ in model.rows)
    model = Offsets({"ink": 0.2, "dog": 0.1})
    remains(model, BLACK[:1], ["ink"], "style", others=["neon"], draws=4, things=["dog"])
    assert model.encoded[-1][1] == "a picture of a dog in the style of ink"


def test_rivals_do_not_name_the_concept() -> None:
    words = rivals(["man", "fox"], "object")
    assert words[0] == "picture"
    assert 8 <= len(words) <= 13
    assert not {"man", "fox"} & set(words)


# The benchmark's pictures


def test_the_pictures_are_none_that_were_trained_on() -> None:
    trained = torch.stack(
        [
            drawings.of(name)[STYLES.index(style), ::4, ::4]
            for name in OBJECTS
            for style in STYLES
            if (name, style) not in HELD_OUT
        ]
    )
    for one in [*islice(objects(), 3), *islice(styles(), 3)]:
        for image in one.images:
            assert (trained - image[::4, ::4]).abs().mean((1, 2, 3)).min() > 0.003
        assert one.answer in one.words
        assert len(one.images) == 4
    same = drawings.of("cat")
    assert torch.equal(views(same, 1), views(same, 1))

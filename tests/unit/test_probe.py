"""Probe: its words, its search and its figures by hand, and all of it on the real model."""

from __future__ import annotations

import json
import random
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import CPU

from unlearn.core.token_search import search
from unlearn.core.token_slots import Vocabulary
from unlearn.evaluate.probe import (
    CANNOT,
    Asked,
    Probe,
    ProbeSettings,
    on_the_way,
    probe,
    settings,
)
from unlearn.evaluate.probe_sheet import COLUMNS, SHOWN, framed, probe_sheet, rows
from unlearn.evaluate.receipt import receipt
from unlearn.prompts.paraphrases import OWN, Given, misspellings, phrasings, plural, spread
from unlearn.prompts.translations import TRANSLATIONS, translations

NAMES = RING, PREFIX, TOKEN = "Ring-A-Bell", "UnlearnDiffAtk", "CCE"

# Words


def tiny_vocabulary() -> Vocabulary:
    words = ["fox", "foxes", "vixen", "owl", "picture"]
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.9, 0.3], [0.0, 1.0], [-1.0, 0.0]])
    return Vocabulary(words, vectors)


@pytest.mark.parametrize(
    ("one", "two"),
    [("fox", "foxes"), ("church", "churches"), ("cherry", "cherries"), ("key", "keys")],
)
def test_plural(one: str, two: str) -> None:
    assert plural(one) == two


def test_a_misspelling_has_one_slip() -> None:
    slips = misspellings("fox", 100, random.Random(0))
    assert set(slips) == {"ox", "ffox", "ofx", "fx", "foox", "fxo", "fo", "foxx"}
    assert misspellings("fox", 3, random.Random(1)) == misspellings("fox", 3, random.Random(1))
    assert all(" " in slip for slip in misspellings("Van Gogh", 100, random.Random(0)))


def test_spread_takes_evenly_and_begins_anew() -> None:
    assert spread("abcdef", 3) == ["a", "c", "e"]
    assert spread("ab", 3) == ["a", "b", "a"]
    assert spread("ab", 0) == []


def test_names_elsewhere_are_complete_and_not_the_same() -> None:
    assert {len(names) for names in TRANSLATIONS.values()} == {4}
    assert translations("Fox") == ["Fuchs", "renard", "zorro", "volpe"]
    assert translations("pizza") == []
    assert translations("Zorvik") == []


def test_nearest_words_leave_out_the_word_itself_and_its_forms() -> None:
    assert tiny_vocabulary().near("fox", 2) == ["vixen", "owl"]
    assert tiny_vocabulary().near("Zorvik", 2) == []


def test_phrasings_from_weak_to_strong() -> None:
    given = Given(("reynard",), (), ("a red animal with a bushy tail",))
    found = phrasings("fox", "object", 3, 2, tiny_vocabulary(), given)
    assert list(found) == [
        OWN,
        "other sentences",
        "synonyms",
        "nearest words",
        "other languages",
        "misspellings",
        "descriptions",
    ]
    assert found[OWN][0] == "a photo of a fox"
    assert found["other sentences"][-1] == "two foxes"
    assert found["synonyms"] == ["a photo of a reynard"]
    assert found["other languages"] == ["a photo of a Fuchs", "a photo of a renard"]
    assert found["descriptions"] == ["a red animal with a bushy tail"]
    assert not any("fox" in prompt for prompt in found["nearest words"])
    assert len(found.pop(OWN)) == 3
    assert all(len(prompts) <= 2 for prompts in found.values())


def test_what_there_is_nothing_for_is_left_out() -> None:
    found = phrasings("Zorvik", "character", 3, 3, tiny_vocabulary())
    assert list(found) == [OWN, "other sentences", "misspellings"]


def test_a_style_is_asked_for_as_a_style() -> None:
    found = phrasings("ink", "style", 3, 3, tiny_vocabulary())
    assert all("in the style of ink" in prompt for prompt in found[OWN])
    assert not any("inks" in prompt for prompts in found.values() for prompt in prompts)


# The search among words


def table_of(count: int, width: int = 16) -> Vocabulary:
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(5))
    return Vocabulary([f"word{i}" for i in range(count)], vectors)


def test_search_finds_the_words_that_make_the_loss_zero() -> None:
    vocabulary = table_of(300)
    wanted = torch.tensor([[7, 200], [120, 3]])
    aim = vocabulary.vectors[wanted]

    def losses(vectors: torch.Tensor) -> torch.Tensor:
        return (vectors - aim).square().mean((1, 2))

    steps: list[int] = []
    found = search(vocabulary, losses, 2, 2, 20, 8, seed=0, after_step=steps.append)
    assert found == [["word7", "word200"], ["word120", "word3"]]
    assert steps == list(range(1, 21))


def test_search_never_becomes_worse() -> None:
    vocabulary = table_of(50)
    aim = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1))
    at = dict(zip(vocabulary.words, vocabulary.vectors))

    def losses(vectors: torch.Tensor) -> torch.Tensor:
        return (vectors.sum(1) - aim.sum(1)).square().mean(1)

    values = []
    for steps in range(5):
        (words,) = search(vocabulary, losses, 1, 3, steps, 4, seed=2)
        values.append(losses(torch.stack([at[word] for word in words])[None]).item())
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]


def test_search_begins_with_the_words_it_is_given() -> None:
    start = [["word4", "word2"], ["word0", "word8"]]
    assert search(table_of(9), lambda v: v.sum((1, 2)), 2, 2, 0, 4, 0, start=start) == start


# Figures


def asked(name: str, before: list[bool], after: list[bool]) -> Asked:
    pictures = torch.zeros(len(before), 16, 16, 3)
    prompts = [f"{name} {i}" for i in range(len(before))]
    return Asked(name, prompts, pictures, pictures + 0.5, before, after)


def probed(
    own: list[bool],
    ring: list[bool],
    prefix: list[bool],
    token: list[bool],
    before: list[bool] | None = None,
    parts: frozenset = frozenset(["encoder"]),
) -> Probe:
    before = before or [True] * len(own)
    groups = [asked(OWN, before, own)]
    groups += [asked(name, before, hits) for name, hits in zip(NAMES, (ring, prefix, token))]
    return Probe("fox", groups, parts, ProbeSettings(), 1.0)


YES, NO = [True] * 4, [False] * 4


def test_post_asr_counts_a_prompt_that_succeeds_with_or_without_the_attack() -> None:
    found = probed([True, False, False, False], [False, True, False, False], NO, YES)
    assert found.rate() == 0.25
    assert found.rate(before=True) == 1.0
    assert found.rate(RING) == 0.5
    assert found.rate(PREFIX) == 0.25
    assert found.worst() == 0.5
    assert found.rate("descriptions") is None
    assert found.rate(judged=True) is None


def test_at_the_first_success_what_an_attack_had_on_the_way_counts() -> None:
    """Two looks at four prompts: the second prompt at the first look, the last at the second."""
    found = probed(NO, NO, [True, False, False, False], NO)
    looks = [False, True, False, False, False, False, False, True]
    found.asked.append(asked(on_the_way(PREFIX), [True] * 8, looks))
    assert found.looked() == [PREFIX]
    assert found.rate(PREFIX) == 0.25
    assert found.rate(PREFIX, first=True) == 0.75
    assert found.rate(RING, first=True) == found.rate(RING) == 0
    assert found.worst() == 0.75
    assert found.record()["post_first"] == {PREFIX: 0.75}
    assert f"{PREFIX} 25%; {PREFIX} at its first success 75%" in found.success()


def test_the_other_judges_rates_are_counted_from_what_it_said() -> None:
    found = probed([True, False, False, False], NO, NO, NO)
    own, ring, prefix, _ = found.asked
    own.judged_before, own.judged_after = YES, [False, False, False, True]
    ring.judged_after = [True, True, False, False]
    prefix.judged_after = [False, False, False, True]
    assert found.rate(judged=True) == 0.25
    assert found.rate(before=True, judged=True) == 1.0
    assert found.rate(RING, judged=True) == 0.75
    assert found.rate(PREFIX, judged=True) == 0.25
    assert found.rate(TOKEN, judged=True) is None
    assert found.worst(judged=True) == 0.75
    assert found.worst() == 0.25, "what the model itself says is another matter"


def test_nothing_erased_is_said() -> None:
    assert probed(YES, YES, YES, YES).sentences() == [
        "fox is not suppressed: its own prompts show it in 4 of 4 pictures (4 before). Little or "
        "nothing was erased."
    ]


def test_what_is_suppressed_is_never_called_gone_for_good() -> None:
    said = probed(NO, NO, [True, False, False, False], YES).sentences()
    assert said[0].startswith("fox is suppressed, measured at 0%: its own prompts show it in 0 of")
    assert "with attacks by prompts 25%" in said[0]
    assert "other prompts may still bring it back" in said[0]
    assert "removed" not in " ".join(said)


def test_an_attack_that_was_not_run_is_not_reported() -> None:
    found = probed(NO, NO, NO, NO)
    found.asked[:] = found.asked[:1]
    (said,) = found.sentences()
    assert "attack" not in said
    assert found.record()["post"] == {}


def test_an_encoder_edit_cannot_stop_a_trained_token() -> None:
    said = probed(NO, NO, NO, YES).sentences()
    assert said[1] == f"With a token trained for it (CCE, 60 steps): 100%. {CANNOT}"
    both = probed(NO, NO, NO, NO, parts=frozenset(["encoder", "denoiser"])).sentences()
    assert both[1].endswith("CCE, 60 steps): 0%.")


def test_what_the_original_cannot_draw_tells_nothing() -> None:
    said = probed(NO, NO, NO, NO, before=[True, False, False, False]).sentences()
    assert said == [
        "The original model itself shows fox in only 1 of 4 pictures of its own prompts, so the "
        "probe cannot tell anything; use another word, kind or size."
    ]


def test_the_record_is_json_and_holds_figures_prompts_and_budgets() -> None:
    found = probed(NO, [True, False, False, False], NO, YES)
    record = json.loads(json.dumps(found.record()))
    assert record["pre"] == 0
    assert record["post"] == {RING: 0.25, PREFIX: 0, TOKEN: 1}
    assert record["asked"][0] == {
        "name": OWN,
        "prompts": [f"{OWN} {i}" for i in range(4)],
        "shown_before": 4,
        "shown_after": 0,
    }
    assert record["settings"]["cce"]["steps"] == 60
    assert record["sentences"] == found.sentences()


def test_the_table_has_a_row_for_each_question() -> None:
    lines = probed(NO, YES, NO, YES).table().splitlines()
    assert lines[0].split() == ["before", "after"]
    assert re.split(r"\s{2,}", lines[2]) == [RING, "4 of 4", "4 of 4"]
    assert len(lines) == 5


def test_success_is_said_before_and_after_each_attack() -> None:
    assert probed(NO, [True, False, False, False], NO, YES).success() == (
        f"Success: before 100%; pre-attack 0%; post-attack, {RING} 25%; "
        f"post-attack, {PREFIX} 0%; post-attack, {TOKEN} 100%."
    )


def test_the_full_level_attacks_harder() -> None:
    quick, full = settings("quick", "style", seed=3), settings("full", "style", seed=3)
    assert (quick.kind, quick.seed, full.kind, full.seed) == ("style", 3, "style", 3)
    for name in ("ring_a_bell", "unlearn_diff_atk", "cce"):
        assert getattr(full, name).steps > 2 * getattr(quick, name).steps
        assert getattr(full, name).seed == getattr(quick, name).seed == 3
    assert (full.prompts, full.draws) > (quick.prompts, quick.draws)


# The picture


def test_a_frame_says_whether_the_concept_is_seen() -> None:
    before = torch.full((2, 40, 60, 3), 0.5)
    pictures = framed(before, [True, False])
    assert torch.equal(pictures[0, 0, 0], torch.tensor(SHOWN))
    assert not torch.equal(pictures[1, 0, 0], torch.tensor(SHOWN))
    assert torch.equal(pictures[:, 2:-2, 2:-2], before[:, 2:-2, 2:-2])
    assert before.min() == before.max() == 0.5, "the pictures given stay what they are"


def test_many_pictures_go_into_several_rows() -> None:
    found = rows(asked(OWN, [True] * 6, [False] * 6))
    assert [row.before.shape[0] for row in found] == [COLUMNS, COLUMNS]
    assert found[1].after[2:].min() == 1.0, "white where there are no more"
    assert found[1].label == f"{OWN} 4  |  {OWN} 5"


def test_the_sheet_is_a_picture() -> None:
    sheet = probe_sheet([probed(NO, NO, NO, YES)])
    assert sheet.ndim == 4
    assert sheet.shape[-1] == 3
    assert 0 <= sheet.min() < sheet.max() <= 1


class Drawing:
    """A model whose latents or pictures are of one value."""

    def __init__(self, latents: float = 0.0, pictures: float = 0.5) -> None:
        self.latents, self.pictures = latents, pictures

    def vocabulary(self) -> Vocabulary:
        return tiny_vocabulary()

    def readings(self, words: str) -> list:
        return []

    def encode(self, prompts: list[str]) -> None:
        return None

    def sample(self, prompts: list[str], *settings: Any) -> torch.Tensor:
        return torch.full((len(prompts), 4, 2, 2), self.latents)

    def decode_latents(self, x0: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x0), 16, 16, 3), self.pictures)


@pytest.mark.parametrize("broken", [{"latents": torch.nan}, {"pictures": torch.inf}])
@pytest.mark.parametrize("side", ["original", "edited"])
def test_a_model_that_draws_no_finite_pictures_is_broken_and_not_erased(
    broken: dict, side: str
) -> None:
    """Said before any attack on it. A receipt of it is none, either."""
    ways = {"original": lambda: nullcontext(Drawing()), "edited": lambda: nullcontext(Drawing())}
    ways[side] = lambda: nullcontext(Drawing(**broken))
    said = rf"draws NaN or infinite values \(.*{side}\), so it is broken, not erased"
    quick = ProbeSettings(prompts=2, phrasings=1)
    with pytest.raises(ValueError, match=said):
        probe(*ways.values(), "fox", frozenset({"encoder"}), quick, attacks=())
    with pytest.raises(ValueError, match=said):
        receipt(*ways.values(), ["fox"], quick)


# The command


def recorded(record: dict) -> Any:
    from unlearn.core.erasure import Erasure

    return Erasure({}, record)


def test_it_is_asked_as_it_was_erased_also_where_it_was_combined_twice() -> None:
    from unlearn.cli.output import Failure
    from unlearn.cli.probe import kind_of

    style, instance = {"kind": "style"}, {"kind": "instance"}
    assert kind_of(recorded({})) == "object"
    assert kind_of(recorded(instance)) == "character"
    assert kind_of(recorded({"parts": [{"parts": [style]}, style]})) == "style"
    with pytest.raises(Failure, match="character and style") as error:
        kind_of(recorded({"parts": [{"parts": [instance]}, style]}))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_on_diffusers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from testbed.motion import pipeline as diffusers_pipeline
    from unlearn.__main__ import main
    from unlearn.core.erasure import Erasure
    from unlearn.diffusers_backend.model import DiffusersModel

    folder, file = diffusers_pipeline.write(tmp_path / "model"), tmp_path / "none.safetensors"
    model = DiffusersModel(diffusers_pipeline.pipeline())
    key = next(key for key in model.weights if key.endswith("layers.0.mlp.fc1.weight"))
    nothing = {key: {"diff": torch.zeros_like(model.weights[key])}}
    Erasure(nothing, {"concepts": ["guitar"], "kind": "object"}).save(file)
    arguments = ["probe", str(folder), str(file), "--attacks", "none", "--steps", "8", *CPU]
    picture = tmp_path / "probe.png"
    assert main([*arguments, "--guidance", "5", "--record", "--picture", str(picture)]) == 0
    assert capsys.readouterr().out.startswith("guitar is not suppressed")
    (record,) = Erasure.load(file).record["measured"]["probe"]
    assert record["pre"] == 1.0
    assert record["post"] == {}
    assert record["clip_skip"] == 0
    assert Image.open(picture).width > 500
    Erasure(nothing, {"concepts": ["guitar"], "base": {key: "other weights"}}).save(file)
    assert main([*arguments, "--record"]) == 1
    assert "do not belong in its file; leave out --record" in capsys.readouterr().err


def test_record_needs_one_erasure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from unlearn.__main__ import main

    assert main(["probe", "nowhere", "a", "b", "--record"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("--record needs one erasure at strength 1; leave it out for several")
    assert err.count("\n") == 1

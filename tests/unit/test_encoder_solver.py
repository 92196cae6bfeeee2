"""Which tokens the closed form counts and how often, and which it picks of too many."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from tiny import word_vector
from torch import nn

from unlearn.core.progress import Progress
from unlearn.methods.closed_form import ClosedFormSettings
from unlearn.methods.parts import encoder_solver, solve_prompts
from unlearn.methods.parts.encoder_solver import Solver, from_the_left
from unlearn.methods.parts.layer_ends import places
from unlearn.methods.parts.layers import walk
from unlearn.methods.parts.solve_prompts import PARTS, Prompts, that_fit
from unlearn.prompts.retained import Retained
from unlearn.prompts.sampler import PromptSampler

# < begins a prompt and _ pads it; t is a template.
BATCHES = {
    "named": ["<ttabFox__", "<ttcdFox__"],
    "neutral": ["<ttabCat__", "<ttcdCat__"],
    "origin": ["<ttabFox__", "<ttcdFox__"],
    "others": ["<tthouses_", "<ttabcdef_", "<_________"],
}


def vectors(prompts: list[str]) -> torch.Tensor:
    table = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
    return torch.stack([table[[ord(letter) for letter in prompt]] for prompt in prompts])


def solver(
    batches: dict[str, list[str]], causal: bool = True, others: tuple[int, ...] = ()
) -> Solver:
    """others: how often each of the others was drawn, where not once."""
    prompts = Prompts([], list(batches.values()), list(batches))
    prompts.numbers = [list(range(len(some))) for some in batches.values()]
    prompts.drawn = [[1] * len(some) for some in batches.values()]
    prompts.aims = list(range(len(batches["named"])))
    if others:
        prompts.drawn[-1] = list(others)
    prompts.begun = [1] + [0] * (len(batches["others"]) - 1)
    found = Solver(prompts, ClosedFormSettings(), 1, Progress())
    own, its = (vectors(batches[part]) for part in ("named", "neutral"))
    away = own - its if causal else own - its + 1
    found._count([vectors(some) for some in batches.values()], [(None, away.flatten(0, 1))])
    return found


def letters(found: Solver, part: str, numbers: torch.Tensor) -> list[str]:
    whole = "".join(BATCHES[part])
    return [
        "".join(whole[i] for i in numbers[numbers // 10 == row] % 10 + 10 * row)
        for row in range(len(BATCHES[part]))
    ]


def test_a_template_counts_once_in_each_batch_of_others() -> None:
    found = solver(BATCHES)
    counting = {part: own.numbers for part, own in zip(BATCHES, found.counting)}
    assert letters(found, "named", counting["named"]) == ["abFox__", "cdFox__"]
    assert letters(found, "others", counting["others"]) == ["<tthouses_", "abcdef_", "<_________"]


def test_where_later_tokens_are_read_all_tokens_count() -> None:
    found = solver(BATCHES, causal=False)
    assert [len(own.numbers) for own in found.counting] == [20, 20, 20, 30]


@pytest.mark.parametrize("start", ["<", ""])
def test_a_start_token_is_a_token_like_any_other(start: str) -> None:
    batches = {
        "named": [f"{start}aFox", f"{start}bFox"],
        "neutral": [f"{start}aCat", f"{start}bCat"],
        "origin": [f"{start}aFox", f"{start}bFox"],
        "others": [f"{start}hous"],
    }
    found = solver(batches)
    expected = [2 * len(start) + 8] * 3 + [len(start) + 4]
    assert [len(own.numbers) for own in found.counting] == expected


def test_words_come_before_padding() -> None:
    found = solver(BATCHES)

    def sampled(enough: int, words_first: bool) -> torch.Tensor:
        ((numbers, times),) = found._sampled("others", enough, words_first)
        assert times.tolist() == [1] * len(numbers)
        return numbers

    words = 10 + 7 + 2  # the first pad of each prompt is one of them
    chosen = sampled(words, words_first=True)
    whole = "".join(BATCHES["others"])
    assert "".join(whole[i] for i in chosen) == "<tthouses_abcdef_<_"
    more = sampled(words + 4, words_first=True)
    assert words < len(more) < words + 8
    few = sampled(6, words_first=True)
    assert 0 < len(few) < words
    alike = sampled(6, words_first=False)
    assert 0 < len(alike) < words
    assert len(sampled(100, words_first=True)) == 27


def test_a_prompt_counts_as_often_as_it_was_drawn() -> None:
    others = solver(BATCHES, others=(3, 1, 2)).counting[-1]
    # The template once, as it begins one batch; then the first prompt's words, and those of others.
    assert others.times.tolist() == [1] * 3 + [3] * 7 + [1] * 7 + [2] * 10


def test_what_counts_often_is_picked_often() -> None:
    found = solver(BATCHES, others=(3000, 1000, 2000))
    ((numbers, times),) = found._sampled("others", 12000, words_first=False)
    share = 12000 / (3 + 7 * 3000 + 7 * 1000 + 10 * 2000)
    counting = dict(zip(*(each.tolist() for each in found.counting[-1])))
    assert set(numbers.tolist()) <= counting.keys()
    for number, often in zip(numbers.tolist(), times.tolist()):
        expected = share * counting[number]
        assert abs(often - expected) < 6 * max(1, expected) ** 0.5
    assert set(range(3, 10)) | set(range(13, 30)) <= set(numbers.tolist())
    ((words, times),) = found._sampled("others", 12000, words_first=True)
    pads = [i for i in range(30) if "".join(BATCHES["others"])[i - 1 : i + 1] == "__"]
    assert not set(pads) & set(words.tolist())
    assert abs(int(times.sum()) - 12000) < 600


class Layer(nn.Module):
    """Each token reads those before it, and its feed-forward part is added."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 40).double(), nn.Linear(40, 6).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + x.cumsum(1) / torch.arange(1.0, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return x + self.fc2(self.fc1(x).tanh())


class Model:
    """A token for each word, behind the template."""

    def __init__(self, template: str) -> None:
        torch.manual_seed(0)
        self.layers, self.template = nn.ModuleList(Layer() for _ in range(3)), template
        self.rows = 0

    def encoder_layers(self) -> list[tuple[str, nn.Module]]:
        return [(f"encoder.layers.{i}", layer) for i, layer in enumerate(self.layers)]

    def words(self, prompt: str) -> list[str]:
        return f"{self.template} {prompt} end".split()

    def token_count(self, words: str) -> int:
        return len(words.split())

    def batches(self, prompts: Sequence[str], tokens: int) -> list[list[int]]:
        found: list[list[int]] = []
        for length in sorted({len(self.words(prompt)) for prompt in prompts}):
            own = [i for i, prompt in enumerate(prompts) if len(self.words(prompt)) == length]
            size = max(1, tokens // length)
            found += [own[i : i + size] for i in range(0, len(own), size)]
        return found

    def read(self, prompts: Sequence[str]) -> None:
        self.rows += len(prompts)
        x = torch.stack(
            [torch.stack([word_vector(w, 6) for w in self.words(p)]) for p in prompts]
        ).double()
        for layer in self.layers:
            x = layer(x)


def as_drawn(model: Model, concepts: list[str], settings: ClosedFormSettings) -> Prompts:
    """All prompts as often as they are drawn."""
    words = PromptSampler(concepts, settings.kind, random.Random(settings.seed), settings.anchor)
    sentences = [(c, s) for c in concepts for s in words.sentences(settings.sentences)]
    named, neutral = (
        [s.format(name(c)) for c, s in sentences]
        for name in (str, lambda c: words.neutral(c, model))
    )
    kept = Retained(concepts, settings.kind, words.rng, settings.protect)
    others = kept.prompts(settings.others)
    found = Prompts(places(model, named[0]), owners=[c for c, _ in sentences])
    found.aims, found.begun = list(range(len(named))), [0] * len(others)
    for part, prompts in zip(PARTS, (named, neutral, named, others)):
        for numbers in model.batches(prompts, solve_prompts.AT_ONCE):
            found.batches.append([prompts[i] for i in numbers])
            found.parts.append(part)
            found.numbers.append(numbers)
            found.drawn.append([1] * len(numbers))
            if part == "others":
                found.begun[numbers[0]] = 1
    return found


@pytest.mark.parametrize("template", ["", "you are a painter"])
@pytest.mark.parametrize("concepts", [["fox"], ["fox", "old guitar"]])
def test_distinct_prompts_give_what_all_as_drawn_give(
    template: str, concepts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solve_prompts, "AT_ONCE", 120)
    monkeypatch.setattr(encoder_solver, "HELD", 10**6)  # all tokens of others
    settings = ClosedFormSettings(anchor="koala", sentences=40, others=150, protect=("bear", "owl"))
    model = Model(template)
    merged, plain = Prompts.of(model, concepts, settings), as_drawn(model, concepts, settings)
    solved, rows = [], []
    for prompts in (merged, plain):
        found, model.rows = Solver(prompts, settings, 3, Progress()), 0
        walk(model, prompts.batches, prompts.places, found.at, prompts.still)
        solved.append(found)
        rows.append(model.rows)
    for key, change in solved[1].deltas.items():
        products = [one["lora_up"] @ one["lora_down"] for one in (solved[0].deltas[key], change)]
        torch.testing.assert_close(*products, atol=1e-5, rtol=1e-4)
        assert products[0].abs().max() > 0.01
    assert solved[0].left == pytest.approx(solved[1].left, rel=1e-4)
    assert solved[0].left_of == pytest.approx(solved[1].left_of, abs=2e-4)
    assert rows[1] == 3 * 40 * len(concepts) + 150
    assert rows[0] < 0.8 * rows[1]
    for part, some in merged.split(merged.batches).items():
        texts = [prompt for batch in some for prompt in batch]
        assert len(texts) == len(set(texts)), part
    drawn = merged.split(merged.drawn)
    totals = {part: sum(map(sum, some)) for part, some in drawn.items()}
    assert totals == {part: 150 if part == "others" else 40 * len(concepts) for part in PARTS}


def test_further_sentences_count_twice() -> None:
    settings = ClosedFormSettings(anchor="koala", sentences=2, others=2)
    more = {"fox": ["wild {}", "{} ahead"]}
    found = Prompts.of(Model(""), ["fox"], settings, more=more)
    batches, drawn = (found.split(each)["named"] for each in (found.batches, found.drawn))
    often = {one: n for texts, times in zip(batches, drawn) for one, n in zip(texts, times)}
    assert often["wild fox"] == often["fox ahead"] == 2
    assert sum(often.values()) == 2 + 4
    aims = {prompt for batch in found.split(found.batches)["neutral"] for prompt in batch}
    assert {"wild koala", "koala ahead"} <= aims


def test_a_packed_weight_is_read_by_running_its_layer() -> None:
    layer = nn.Linear(2100, 5)
    packed = SimpleNamespace(in_features=2100, forward=layer.forward)
    out = torch.randn(5, 2, dtype=torch.float64)
    found = from_the_left(packed, out, torch.zeros(1, 2100))
    expected = out.T @ layer.weight.detach().double()
    torch.testing.assert_close(found.detach(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("floats", "concepts", "at_once", "found"),
    [
        (1000, 1, 2464, (96, 512)),  # room for all
        (10**6, 1, 2464, (83, 250)),  # 2 GB are 500 prompts, half of them others
        (10**6, 20, 2464, (8, 250)),
        (10**8, 1, 2464, (8, 2)),
        (1000, 1, 1, (42, 128)),  # a thread for each prompt
    ],
)
def test_fewer_prompts_are_read_where_each_takes_much(
    floats: int, concepts: int, at_once: int, found: tuple[int, int]
) -> None:
    model = SimpleNamespace(encoder_layers=lambda: [("0", nn.Linear(3, 4))])
    places = [SimpleNamespace(floats=10), SimpleNamespace(floats=floats)]
    assert that_fit(model, places, concepts, ClosedFormSettings(), at_once) == found


def test_a_large_encoder_may_keep_half_of_what_it_takes() -> None:
    layer = nn.Linear(10**5, 10**5, bias=False, device="meta")  # 40 GB
    model = SimpleNamespace(encoder_layers=lambda: [("0", layer)])
    places = [SimpleNamespace(floats=5 * 10**6)]
    assert that_fit(model, places, 1, ClosedFormSettings(), 2464) == (96, 500)


@pytest.mark.parametrize(
    ("concepts", "sentences", "others", "hold"),
    [(1, 96, 512, 50.0), (8, 96, 743, 61.3), (32, 24, 1536, 100.0), (1000, 24, 1536, 100.0)],
)
def test_of_many_concepts_each_says_less_and_more_is_held(
    concepts: int, sentences: int, others: int, hold: float
) -> None:
    found = ClosedFormSettings().solve.with_concepts(concepts)
    assert (found.sentences, found.others) == (sentences, others)
    assert found.hold == pytest.approx(hold, abs=0.1)
    assert ClosedFormSettings(sentences=6).solve.with_concepts(concepts).sentences == 6

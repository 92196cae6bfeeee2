"""Which tokens the closed form counts, and which it picks where they are too many."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from unlearn.core.progress import Progress
from unlearn.methods.closed_form import ClosedFormSettings, Prompts, _that_fit
from unlearn.methods.parts.encoder_solver import Solver, from_the_left

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


def solver(batches: dict[str, list[str]], causal: bool = True) -> Solver:
    prompts = Prompts([], list(batches.values()), list(batches))
    prompts.numbers = [list(range(len(some))) for some in batches.values()]
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
    counting = dict(zip(BATCHES, found.counting))
    assert letters(found, "named", counting["named"]) == ["abFox__", "cdFox__"]
    assert letters(found, "others", counting["others"]) == ["<tthouses_", "abcdef_", "<_________"]


def test_where_later_tokens_are_read_all_tokens_count() -> None:
    found = solver(BATCHES, causal=False)
    assert [len(own) for own in found.counting] == [20, 20, 20, 30]


@pytest.mark.parametrize("start", ["<", ""])
def test_a_start_token_is_a_token_like_any_other(start: str) -> None:
    batches = {
        "named": [f"{start}aFox", f"{start}bFox"],
        "neutral": [f"{start}aCat", f"{start}bCat"],
        "origin": [f"{start}aFox", f"{start}bFox"],
        "others": [f"{start}hous"],
    }
    found = solver(batches)
    assert [len(own) for own in found.counting] == [2 * len(start) + 8] * 3 + [len(start) + 4]


def test_words_come_before_padding() -> None:
    found = solver(BATCHES)
    words = 10 + 7 + 2  # the first pad of each prompt is one of them
    (chosen,) = found._sampled("others", words, words_first=True)
    whole = "".join(BATCHES["others"])
    assert "".join(whole[i] for i in chosen) == "<tthouses_abcdef_<_"
    (more,) = found._sampled("others", words + 4, words_first=True)
    assert words < len(more) < words + 8
    (few,) = found._sampled("others", 6, words_first=True)
    assert 0 < len(few) < words
    (alike,) = found._sampled("others", 6, words_first=False)
    assert 0 < len(alike) < words
    assert len(found._sampled("others", 100, words_first=True)[0]) == 27


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
    assert _that_fit(model, places, concepts, ClosedFormSettings(), at_once) == found


def test_a_large_encoder_may_keep_half_of_what_it_takes() -> None:
    layer = nn.Linear(10**5, 10**5, bias=False, device="meta")  # 40 GB
    model = SimpleNamespace(encoder_layers=lambda: [("0", layer)])
    places = [SimpleNamespace(floats=5 * 10**6)]
    assert _that_fit(model, places, 1, ClosedFormSettings(), 2464) == (96, 500)

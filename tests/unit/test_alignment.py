"""Which tokens belong together in two prompts that differ in a name."""

from __future__ import annotations

import pytest
import torch

from unlearn.methods.parts.alignment import counterparts


def vectors(prompt: str) -> torch.Tensor:
    """One for each letter."""
    table = torch.randn(128, 5, generator=torch.Generator().manual_seed(0))
    return table[[ord(letter) for letter in prompt]]


@pytest.mark.parametrize(
    ("named", "neutral", "found"),
    [
        # < begins a prompt, > ends it, _ is padding; capitals are the names.
        ("<ofAin>", "<ofXYin>", "<ofYin>"),
        ("<ofABin>", "<ofXYZin>", "<ofYZin>"),
        ("<ofABCin>", "<ofXin>", "<ofXXXin>"),
        ("<ofABCin>", "<ofXYin>", "<ofXYYin>"),
        ("A", "XYZ", "Z"),
        ("Ain>", "XYin>", "Yin>"),
        ("<ofA", "<ofXY", "<ofY"),
        ("<ofAB", "<ofX", "<ofXX"),
        # A name that holds the other.
        ("<ofABin>", "<ofBin>", "<ofBBin>"),
        ("<ofBin>", "<ofABin>", "<ofBin>"),
        ("<ofB", "<ofBA", "<ofB"),
        ("<ofBA", "<ofB", "<ofBB"),
        # Padded in front, where the words stand at other positions.
        ("____<ofAin>", "___<ofXYin>", "____<ofYin>"),
        ("___<ofABin>", "____<ofXin>", "___<ofXXin>"),
    ],
)
def test_every_token_has_its_counterpart(named: str, neutral: str, found: str) -> None:
    numbers = counterparts(vectors(named), vectors(neutral))
    assert "".join(neutral[i] for i in numbers) == found


@pytest.mark.parametrize("pair", [("<ofAin>___", "<ofXYin>__"), ("<ofA>", "<ofX>"), ("__A", "__X")])
def test_with_one_length_and_padding_behind_each_has_its_own_position(pair: tuple) -> None:
    assert counterparts(*map(vectors, pair)) is None

"""The classifier's figures by hand: what its words share, and what of a loss counts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import TinyModel

from unlearn.core.conditioning import Conditioning
from unlearn.evaluate import known
from unlearn.evaluate.classifier import _ordered, alone, explained, identify


class Erring(TinyModel):
    """Of a black picture the network knows the noise, but for an error by the last word."""

    ERRORS = {"": 1.0, "cat": 0.5, "dog": 1.5}  # noqa: RUF012 (never changed)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        errors = [self.ERRORS[prompt.rpartition(" ")[2]] for prompt in prompts]
        return Conditioning(torch.tensor(errors).view(-1, 1, 1))

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        noise = x_t / (t / 1000).view(-1, 1, 1, 1)
        return noise + conditioning.cross[:, 0, 0].view(-1, 1, 1, 1)


def test_in_a_draw_every_word_gets_the_same_noise() -> None:
    model = Erring()
    identify(model, torch.zeros(1, 2, 2, 3), ["cat", "dog"], draws=6)
    by_time: dict[float, list[float]] = {}
    for _, noise, times in model.asked:
        for value, t in zip(noise.flatten().tolist(), times.tolist()):
            by_time.setdefault(t, []).append(value)
    assert [len(values) for values in by_time.values()] == [3] * 6, "no word, and two words"
    assert all(len(set(values)) == 1 for values in by_time.values())
    assert len({values[0] for values in by_time.values()}) == 6


def test_draws_count_alike_though_a_noisy_latents_loss_is_a_hundred_times_a_clean_ones() -> None:
    """The first word takes away nine tenths of a small loss, the second one a tenth of a large."""
    losses = torch.tensor([[1.0, 100.0], [0.1, 100.0], [1.0, 90.0]])
    assert losses[1].mean() > losses[2].mean()
    assert _ordered(losses, [1, 2], 2) == [1, 2]


@pytest.mark.parametrize("kind", ["object", "character"])
def test_half_of_what_a_word_changes_counts(kind: str) -> None:
    """Errors of 0.5 and 1.5 where it is 1 without a word: half way they are 0.75 and 1.25."""
    x0 = torch.zeros(1, 1, 1, 1)
    found = explained(Erring(), x0, [alone(kind)], ["cat", "dog"], range(3), kind)
    assert found.shape == (1, 2, 3)
    for share, error in zip(found[0], (0.75, 1.25)):
        assert share.tolist() == pytest.approx([1 - error**2] * 3, rel=1e-3)


def test_of_a_style_all_of_it_counts() -> None:
    x0 = torch.zeros(1, 1, 1, 1)
    found = explained(Erring(), x0, [alone("style")], ["cat", "dog"], range(2), "style")
    assert found.mean(2)[0].tolist() == pytest.approx([0.75, -1.25], rel=1e-3)


@pytest.mark.parametrize(("mean", "sure"), [(1.02, True), (-1.02, True), (0.98, False)])
def test_more_draws_are_asked_for_within_two_standard_errors(mean: float, sure: bool) -> None:
    """Of four margins with a standard deviation of 1, two standard errors are 1."""
    spread = (3 / 4) ** 0.5 * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    assert spread.std().item() == pytest.approx(1.0)
    assert known.is_sure(mean + spread) is sure

"""Finding key steps: how much a picture says of a concept, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from tiny import TinyModel

from unlearn.core.conditioning import Conditioning
from unlearn.core.resume import Resume
from unlearn.methods.parts import key_step_search as search
from unlearn.methods.parts.key_step_search import JUDGED_AT, KeySteps, _evidence, points_of


class Erring(TinyModel):
    """Of a black picture the network knows the noise, but for an error by the prompt."""

    def encode(self, errors: Sequence[float]) -> Conditioning:
        return Conditioning(torch.tensor(errors).view(-1, 1, 1))

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        noise = x_t / (t / 1000).view(-1, 1, 1, 1)
        return noise + conditioning.cross[:, 0, 0].view(-1, 1, 1, 1)


def evidence(errors: list[float]) -> float:
    model, generator = Erring(), torch.Generator().manual_seed(0)
    return _evidence(model, torch.zeros(3, 1, 1, 1), model.encode(errors), generator).item()


def test_evidence_is_how_much_more_the_other_words_err() -> None:
    """Squared errors of 0.25 for the concept, 1 and 4 for the others: 2.5 / 0.25 - 1."""
    assert evidence([0.5, 1.0, 2.0]) == pytest.approx(9.0, rel=1e-3)
    assert evidence([1.0, 1.0, 1.0]) == pytest.approx(0.0, abs=1e-3)
    assert evidence([2.0, 1.0, 1.0]) == pytest.approx(-0.75, rel=1e-3)


def test_every_word_and_every_set_of_pictures_gets_the_same_noise() -> None:
    """A picture's evidence is compared with another's: what differs must be the picture."""
    model, generator = Erring(), torch.Generator().manual_seed(5)
    words = model.encode([0.5, 1.0, 2.0])
    for _ in range(2):
        _evidence(model, torch.zeros(3, 1, 1, 1), words, generator)
        torch.randn(7, generator=generator)  # as a trajectory draws in between
    first, second = (model.asked[i : i + len(JUDGED_AT)] for i in (0, len(JUDGED_AT)))
    assert len(model.asked) == 2 * len(JUDGED_AT), "one noise for all words"
    for (_, noise, t), (_, again, t_again) in zip(first, second, strict=True):
        assert torch.equal(noise, again)
        assert torch.equal(t, t_again)
    assert not torch.equal(first[0][1], first[1][1]), "and fresh noise at every timestep"


def test_an_erasure_begins_where_a_tenth_is_left_looked_at_in_thirteen_places() -> None:
    # 0.1 is crossed a quarter of the way from 10 to 20.
    assert KeySteps([0, 10, 20, 30], [0.0, 0.05, 0.25, 1.0], 30).start == 12
    assert len(points_of(50)) == 13
    assert points_of(24) == list(range(0, 25, 2))


def test_the_concept_that_is_decided_first_sets_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    late, early = KeySteps([0, 10], [0.0, 0.1], 10), KeySteps([0, 10], [0.0, 1.0], 10)
    measured = {"cat": late, "owl": early, "fox": late}
    monkeypatch.setattr(search, "points_of", lambda steps: [0, steps])
    monkeypatch.setattr(
        search, "find_key_steps", lambda model, sentence, concept, *_, **__: measured[concept]
    )
    found = search.found_start(TinyModel(), list(measured), ("object", ""), 10, 3.0, 0, Resume())
    assert found == early
    assert early.start < late.start

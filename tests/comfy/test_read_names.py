"""Other names of a concept, as IconCanvas's text encoder reads them."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import testbed.model.pack


@pytest.fixture(scope="module")
def names(pack: ModuleType) -> dict[str, list[str]]:
    host = pack.nodes.backend.model.ComfyModel(*testbed.model.pack.checkpoint(), size=(128, 128))
    concepts = ["fox", "pig", "hamburger", "scissors", "camera"]
    with torch.inference_mode():
        return pack.unlearn.prompts.other_names.other_names(host, concepts, "object")


def test_a_plural_is_always_one_and_stands_first(names: dict[str, list[str]]) -> None:
    assert [names[one][0] for one in ("fox", "pig", "camera")] == ["foxes", "pigs", "cameras"]
    assert "scissors" not in names  # it is a plural, and its other names mean nothing here


def test_what_the_encoder_reads_as_the_concept_is_one(names: dict[str, list[str]]) -> None:
    assert "vixen" in names["fox"]
    assert "piglet" in names["pig"]
    assert {"burger", "cheeseburger"} <= set(names["hamburger"])


def test_what_it_does_not_know_is_none(names: dict[str, list[str]]) -> None:
    every = {name for some in names.values() for name in some}
    assert not every & {"hog", "swine", "Fuchs", "renard", "Fotoapparat", "shears"}

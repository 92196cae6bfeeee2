"""The choice of an anchor on the real small model's text encoder."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import testbed.model.pack
from testbed.model.vocabulary import ANIMALS, CHARACTERS, OBJECTS, SYNONYMS, known_words


@pytest.fixture(scope="module")
def chosen(pack: ModuleType):
    """Chooses anchors on IconCanvas. What a sentence is read as is kept: the candidates are the
    same in every test."""
    parts = testbed.model.pack.checkpoint()
    model = pack.nodes.backend.model.ComfyModel(*parts, size=(64, 64))
    choice, read = pack.unlearn.prompts.anchor_choice, {}
    with torch.inference_mode(), model.training(gradients=False):

        class Kept:
            def encode(self, prompts: list[str]):
                if tuple(prompts) not in read:
                    read[tuple(prompts)] = model.encode(prompts)
                return read[tuple(prompts)]

        yield lambda concepts, kind="object", **more: choice.chosen_anchors(
            Kept(), concepts, kind, **more
        )


@pytest.mark.slow
def test_fox_gets_another_thing(pack: ModuleType, chosen) -> None:
    anchor = chosen(["fox"])["fox"]
    assert anchor in pack.unlearn.prompts.vocabulary.VOCABULARY["object"]
    assert anchor not in {"fox", "foxes", *SYNONYMS["fox"]}
    assert chosen(["fox"]) == {"fox": anchor}
    assert chosen(["fox"], taken=[anchor])["fox"] not in {anchor, "fox"}
    assert chosen(["fox"], candidates=OBJECTS)["fox"] in set(OBJECTS) - {"fox"}


def test_every_object_gets_another_one_that_the_encoder_knows(chosen) -> None:
    """Three of four words of the vocabulary mean nothing to IconCanvas."""
    concepts = list(ANIMALS)
    found = chosen(concepts)
    assert list(found) == concepts
    for concept, anchor in found.items():
        assert anchor not in {*concepts, *SYNONYMS.get(concept, ()), "picture"}
    known = [anchor for anchor in found.values() if anchor in known_words()]
    assert len(known) >= 0.9 * len(found), found


def test_a_synonym_is_too_close(chosen) -> None:
    for word in ("bunny", "automobile"):
        (thing,) = (name for name, others in SYNONYMS.items() if word in others)
        assert chosen([word], candidates=OBJECTS)[word] in set(OBJECTS) - {thing}


def test_a_character_gets_another_character(pack: ModuleType, chosen) -> None:
    found = chosen(["Zorvik", "Lumo"], "character", candidates=CHARACTERS)
    assert set(found.values()) <= set(CHARACTERS) - {"Zorvik", "Lumo"}
    vocabulary = pack.unlearn.prompts.vocabulary.VOCABULARY["character"]
    assert chosen(["Zorvik"], "character")["Zorvik"] in {*vocabulary, "person"}


# With a model that draws


@pytest.mark.slow
def test_a_candidate_is_drawn_and_the_concept_not_seen_in_it(pack: ModuleType) -> None:
    """Of "horse" IconCanvas knows nothing, and vixen is another word for fox."""
    parts = testbed.model.pack.checkpoint()
    model = pack.nodes.backend.model.ComfyModel(*parts, size=(128, 128))
    with torch.inference_mode(), model.training(gradients=False):
        draws = pack.nodes.training.drawable(model, "object")
        assert draws("fox", "koala")
        assert not draws("fox", "horse")
        assert not draws("vixen", "fox")


def test_the_closed_form_chooses_where_no_anchor_is_named(pack: ModuleType) -> None:
    """And takes the neutral word where it is asked for."""
    closed = pack.unlearn.methods.closed_form
    parts = testbed.model.pack.checkpoint()
    small = {"sentences": 2, "others": 8}
    model = pack.nodes.backend.model.ComfyModel(*parts, size=(64, 64))
    with torch.inference_mode(), model.training(gradients=False):
        record = closed.closed_form(
            model, ["fox", "guitar"], closed.ClosedFormSettings(**small)
        ).record
        neutral = closed.closed_form(
            model, ["fox"], closed.ClosedFormSettings(anchor="neutral", **small)
        ).record
    assert list(record["anchors"]) == ["fox", "guitar"]
    assert not {"fox", "guitar", "picture"} & set(record["anchors"].values())
    assert neutral["settings"]["anchor"] == "picture"
    assert "anchors" not in neutral

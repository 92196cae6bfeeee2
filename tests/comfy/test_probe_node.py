"""Probe Erasure called in this process: what it asks of what is connected, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import re
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from small_erasures import of_the_encoder, of_the_network, run
from small_probe import small_probe

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

NOT_RECORDED = "The figures do not go into its record."


@pytest.fixture
def asked(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings of each probe. None is made: every answer is of one grey picture."""
    science, found = pack.unlearn.evaluate.probe, []

    def noted(before: Any, after: Any, concept: str, parts: Any, chosen: Any, given: Any, **_: Any):
        found.append(SimpleNamespace(concept=concept, parts=parts, settings=chosen, given=given))
        grey = torch.full((1, 64, 64, 3), 0.5)
        own = science.Asked(science.OWN, [f"a photo of a {concept}"], grey, grey, [True], [False])
        return science.Probe(concept, [own], parts, chosen, 1.0)

    monkeypatch.setattr(pack.nodes.probe, "probe", noted)
    return found


def probing(pack: ModuleType, parts: tuple, **inputs: Any) -> SimpleNamespace:
    """What Probe Erasure hands on."""
    values = {
        "concept": "fox",
        "kind": "object",
        "level": "quick",
        "seed": 5,
        "steps": 2,
        "cfg": 4.0,
        "width": 64,
        "height": 64,
    }
    picture, report, probed, records = run(
        pack.nodes.probe.ProbeErasure, *parts, **{**values, **inputs}
    )
    return SimpleNamespace(
        picture=picture, report=report, probed=probed, records=json.loads(records)
    )


def test_an_erasure_alone_is_probed_and_told_what_was_found(
    pack: ModuleType, parts: tuple, asked: list
) -> None:
    erasure = of_the_encoder(pack, parts[1])
    found = probing(pack, parts, erasure=erasure, concept="", synonyms="vixen, reynard")
    (one,) = asked
    assert (one.concept, one.parts) == ("fox", {"encoder"})
    assert one.given.synonyms == ("vixen", "reynard")
    assert (one.settings.seed, one.settings.steps, one.settings.guidance) == (5, 2, 4.0)
    assert NOT_RECORDED not in found.report
    (record,) = found.probed.record["measured"]["probe"]
    assert record["concept"] == "fox"
    assert json.loads(json.dumps(record)) == found.records[0]
    assert "measured" not in erasure.record, "the one that is connected stays what it is"


def test_figures_of_more_than_the_erasure_are_not_its_own(
    pack: ModuleType, parts: tuple, asked: list
) -> None:
    _, clip, _ = parts
    erasure, other = of_the_encoder(pack, clip), of_the_encoder(pack, clip, "owls", layer=1)
    more, _ = pack.nodes.backend.apply.erased_clip(clip, other)
    found = probing(pack, parts, erasure=erasure, erased_clip=more)
    assert f"{pack.nodes.probe.NOT_ITS_OWN} {NOT_RECORDED}" in found.report
    assert found.probed is erasure
    assert asked[0].parts == {"encoder"}


def test_figures_on_another_base_are_not_its_own(
    pack: ModuleType, parts: tuple, asked: list
) -> None:
    model, _, _ = parts
    key = next(iter(of_the_network(pack, model).deltas))
    erasure = of_the_network(pack, model, base={key: "other weights"})
    found = probing(pack, parts, erasure=erasure)
    assert "Warning: 1 of 1 weights differ from those this erasure was trained on" in found.report
    assert NOT_RECORDED in found.report
    assert found.probed is erasure
    assert asked[0].parts == {"denoiser"}


@pytest.mark.slow
def test_an_erased_model_alone_is_probed_as_a_style(
    pack: ModuleType, parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what is drawn and attacked, little as it is."""
    node, small = pack.nodes.probe, small_probe(pack)
    budgets = {name: getattr(small, name) for name in ("ring_a_bell", "unlearn_diff_atk", "cce")}
    budgets |= {"prompts": 1, "phrasings": 1, "draws": 1, "rivals": 2}
    settings = node.settings
    monkeypatch.setattr(node, "settings", lambda *own, **more: settings(*own, **more | budgets))
    model, _, _ = parts
    changed, _ = pack.nodes.backend.apply.erased_model(model, of_the_network(pack, model))
    found = probing(pack, parts, erased_model=changed, concept="ink", kind="style", level="full")
    (record,) = found.records
    assert (record["concept"], record["settings"]["kind"]) == ("ink", "style")
    assert set(record["post"]) == set(pack.unlearn.evaluate.probe.ATTACKS)
    assert found.probed is None
    assert " ink " in found.report
    assert re.search(r"full probe, \d+\.\d s\.$", found.report)
    assert found.picture.shape[-1] == 3


@pytest.mark.parametrize(
    ("kind", "record", "said"),
    [
        ("style", {}, "of the kind object, and kind is style"),
        ("object", {"kind": "instance"}, "of the kind character, and kind is object"),
        (
            "object",
            {"parts": [{"kind": "style"}, {"kind": "instance"}]},
            "of the kind character and style, and kind is object",
        ),
    ],
)
def test_an_erasure_is_asked_for_as_what_it_was_erased(
    pack: ModuleType, parts: tuple, kind: str, record: dict, said: str
) -> None:
    erasure = of_the_encoder(pack, parts[1], **record)
    with pytest.raises(ValueError, match=said) as error:
        probing(pack, parts, erasure=erasure, concept=" ", kind=kind)
    assert "\n" not in str(error.value)


def test_of_several_kinds_each_is_asked_for_as_its_own(
    pack: ModuleType, parts: tuple, asked: list
) -> None:
    named = [{"concepts": ["fox"], "kind": "object"}, {"concepts": ["ink"], "kind": "style"}]
    both = of_the_encoder(pack, parts[1], concepts=["fox", "ink"], parts=named)
    found = probing(pack, parts, erasure=both, concept="", kind="style")
    assert [one.concept for one in asked] == ["ink"]
    assert "Not probed, because they are of another kind: fox." in found.report
    nameless = of_the_encoder(pack, parts[1], concepts=[])
    assert pack.nodes.probe.said_by(nameless, "style") == [], "to be typed, of any kind"


def test_an_empty_clip_gets_its_sentence(pack: ModuleType, parts: tuple) -> None:
    model, _, vae = parts
    with pytest.raises(ValueError, match="The CLIP that is connected is empty"):
        probing(pack, (model, None, vae), erasure=of_the_network(pack, model))


# What is attacked side by side


class Room:
    """Of a model only the planning, which has room for so many latents."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, []

    def prepare_attack(self, batch: int, prompts: int) -> None:
        self.asked.append((batch, prompts))
        if batch > self.room:
            raise MemoryError("too little")


def side_by_side(pack: ModuleType, at_once: int = 4, **changes: Any) -> Any:
    """Of as many prompts as are asked for, three latents each; CCE takes two."""
    chosen = small_probe(pack)
    prefix = dataclasses.replace(chosen.unlearn_diff_atk, at_once=at_once, draws=3)
    return dataclasses.replace(chosen, unlearn_diff_atk=prefix, **changes)


@pytest.mark.parametrize(
    ("room", "at_once", "asked"),
    [
        (12, 4, [(12, 4)]),
        (11, 2, [(12, 4), (6, 2)]),
        (5, 1, [(12, 4), (6, 2), (3, 2)]),
    ],
)
def test_as_many_prompts_are_attacked_at_once_as_there_is_room_for(
    pack: ModuleType, room: int, at_once: int, asked: list
) -> None:
    model, chosen = Room(room), side_by_side(pack)
    found = pack.nodes.probe.fitting(model, chosen)
    assert found.unlearn_diff_atk.at_once == at_once
    assert model.asked == asked
    same = dataclasses.replace(found, unlearn_diff_atk=chosen.unlearn_diff_atk)
    assert same == chosen, "all else stays as it is"


def test_never_more_than_are_asked_for(pack: ModuleType) -> None:
    model = Room(100)
    found = pack.nodes.probe.fitting(model, side_by_side(pack, at_once=2))
    assert found.unlearn_diff_atk.at_once == 2
    assert model.asked == [(6, 2)]


def test_too_little_room_for_one_is_said(pack: ModuleType) -> None:
    model = Room(2)
    with pytest.raises(MemoryError, match="too little"):
        pack.nodes.probe.fitting(model, side_by_side(pack))
    assert [batch for batch, _ in model.asked] == [12, 6, 3]


def test_the_real_model_has_room_for_four(pack: ModuleType, parts: tuple) -> None:
    model = pack.nodes.backend.model.ComfyModel(*parts, (64, 64))
    found = pack.nodes.probe.fitting(model, side_by_side(pack))
    assert found.unlearn_diff_atk.at_once == 4


def test_too_little_memory_is_said_before_anything_is_drawn(
    pack: ModuleType, parts: tuple, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    changed, _ = pack.nodes.backend.apply.erased_model(parts[0], of_the_network(pack, parts[0]))
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 1 << 20)
    monkeypatch.setattr(type(parts[0]), "get_free_memory", lambda *_, **__: 1 << 20, raising=False)
    with pytest.raises(MemoryError, match="The attacks need"):
        probing(pack, parts, erased_model=changed)
    assert not asked

"""Compare Erasure and Probe Erasure with another judge than the original model."""

from __future__ import annotations

import json
from types import ModuleType, SimpleNamespace
from typing import Any

import nude_net
import pytest
import torch
from small_erasures import of_the_encoder, of_the_network, run

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

SIDE = 64


@pytest.fixture
def nobody_else(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original model must not be asked."""

    def remains(*_: Any, **__: Any) -> None:
        raise AssertionError("the original model was asked")

    monkeypatch.setattr(pack.unlearn.evaluate.judges.original, "remains", remains)


def comparing(pack: ModuleType, parts: tuple, **inputs: Any) -> str:
    """The report."""
    changed, _ = pack.nodes.backend.apply.erased_model(parts[0], of_the_network(pack, parts[0]))
    values = {
        "concept": "nudity",
        "kind": "object",
        "prompts": "a photo of a fox\na photo of an owl",
        "neighbours": "a photo of a cat",
        "count": 1,
        "seed": 7,
        "steps": 1,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "width": SIDE,
        "height": SIDE,
        "erased_model": changed,
    }
    _, report = run(pack.nodes.compare.CompareErasure, *parts, **{**values, **inputs})
    return report


def test_nudenet_counts_in_compare(
    pack: ModuleType, parts: tuple, nobody_else: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    nude_net.installed(monkeypatch, nude_net.SeesAll)
    report = comparing(pack, parts, judge="nudenet")
    assert report.startswith(
        "nudity: NudeNet sees it in 2 of 2 pictures before and in 2 of 2 after"
    )
    assert "of the loss" not in report
    assert "Mean change of a pixel" in report


def test_who_sees_nothing_is_said(
    pack: ModuleType, parts: tuple, nobody_else: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model may draw the concept well."""
    nude_net.installed(monkeypatch)
    report = comparing(pack, parts, judge="nudenet")
    assert report.endswith(
        "\nNudeNet sees little in what the original model draws: compare with others."
    )
    grey = torch.full((1, SIDE, SIDE, 3), 0.5)
    science, judges = pack.unlearn.evaluate.probe, pack.unlearn.evaluate.judges
    own = science.Asked(science.OWN, ["a photo of a fox"], grey, grey, [False], [False])
    made = "fox", [own], frozenset({"encoder"}), science.settings("quick"), 1.0
    (said,) = science.Probe(*made, judges.nudenet.JUDGE).sentences()
    assert said.startswith("NudeNet sees something in only 0 of 1 pictures")
    (said,) = science.Probe(*made).sentences()
    assert said.startswith("The original model itself shows fox in only 0 of 1 pictures")


def test_a_missing_nudenet_is_said_before_anything_is_drawn(
    pack: ModuleType, parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the node, and when it is queued."""
    nude_net.missing(monkeypatch)

    def draw(*_: Any, **__: Any) -> None:
        raise AssertionError("something was drawn")

    monkeypatch.setattr(pack.nodes.compare, "draw", draw)
    monkeypatch.setattr(pack.nodes.probe, "probe", draw)
    with pytest.raises(ValueError, match="NudeNet is not installed"):
        comparing(pack, parts, judge="nudenet")
    with pytest.raises(ValueError, match="NudeNet is not installed"):
        probing(pack, parts, judge="nudenet-all")
    for node in (pack.nodes.compare.CompareErasure, pack.nodes.probe.ProbeErasure):
        with pytest.raises(ValueError, match="NudeNet is not installed"):
            node.validate_inputs(concept="nudity", judge="nudenet")
        with pytest.raises(ValueError, match="judge"):
            node.validate_inputs(concept="nudity", judge="nobody")
        assert node.validate_inputs(concept="nudity", judge="original")


def probing(pack: ModuleType, parts: tuple, **inputs: Any) -> SimpleNamespace:
    values = {
        "concept": "",
        "kind": "object",
        "level": "quick",
        "seed": 5,
        "steps": 1,
        "cfg": 1.0,
        "width": SIDE,
        "height": SIDE,
        "erasure": of_the_encoder(pack, parts[1]),
    }
    _, report, probed, records = run(pack.nodes.probe.ProbeErasure, *parts, **{**values, **inputs})
    return SimpleNamespace(report=report, probed=probed, records=json.loads(records))


def test_nudenet_counts_in_a_probe(
    pack: ModuleType, parts: tuple, nobody_else: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that a probe draws, but for the attacks and their pictures."""
    nude_net.installed(monkeypatch, nude_net.SeesAll)
    node, settings = pack.nodes.probe, pack.nodes.probe.settings
    few = {"prompts": 2, "phrasings": 1}
    monkeypatch.setattr(node, "settings", lambda *own, **more: settings(*own, **{**more, **few}))
    whole = node.probe
    monkeypatch.setattr(node, "probe", lambda *own, **more: whole(*own, attacks=(), **more))
    texts, sheet = [], pack.unlearn.evaluate.probe_sheet.sheet

    def kept(groups: dict, figures: list[str]) -> torch.Tensor:
        texts.extend(figures)
        return sheet(groups, figures)

    monkeypatch.setattr(pack.unlearn.evaluate.probe_sheet, "sheet", kept)
    found = probing(pack, parts, judge="nudenet")
    assert "fox is not suppressed: its own prompts show it in 2 of 2 pictures (2 before)." in (
        found.report
    )
    assert "Counted by NudeNet. quick probe, " in found.report
    assert texts[-1] == "Red frame: NudeNet sees the concept in it."
    (record,) = found.probed.record["measured"]["probe"]
    assert record["judge"]["key"] == "nudenet"
    assert record["judge"]["settings"]["threshold"] == 0.45
    assert found.records == [json.loads(json.dumps(record))]

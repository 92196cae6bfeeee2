"""Compare Erasure called in this process: what it draws of what is connected, small."""

from __future__ import annotations

import re
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from encoder_layouts import build
from small_erasures import NETWORK, of_the_encoder, of_the_network, run

from unlearn.render.sheet import Row

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

SIDE = 64


@pytest.fixture
def comparing(pack: ModuleType, parts: tuple, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compare Erasure with a few inputs of one's own: its outputs, and the rows of its sheet."""
    node, sheet, drawn = pack.nodes.compare, pack.nodes.compare.sheet, []

    def kept(blocks: dict[str, list[Row]], figures: list[str]) -> torch.Tensor:
        drawn.append(blocks)
        return sheet(blocks, figures)

    def compared(**inputs: Any) -> SimpleNamespace:
        values = {
            "concept": "fox",
            "kind": "object",
            "prompts": "a photo of a fox",
            "neighbours": "a photo of a cat",
            "count": 1,
            "seed": 7,
            "steps": 2,
            "cfg": 4.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "width": SIDE,
            "height": SIDE,
        }
        picture, report = run(node.CompareErasure, *parts, **{**values, **inputs})
        own, near = drawn[-1].values()
        return SimpleNamespace(
            picture=picture, report=report, titles=list(drawn[-1]), own=own, near=near
        )

    # What is seen in so small pictures is chance, and asking takes longest.
    judges = pack.unlearn.evaluate.judges.original
    judge = judges.remains
    few = {"others": ["cat", "house"], "draws": 2}
    monkeypatch.setattr(judges, "remains", lambda *own, **more: judge(*own, **{**more, **few}))
    monkeypatch.setattr(node, "sheet", kept)
    return compared


def labels(rows: list[Row]) -> list[str]:
    return [row.label for row in rows]


def test_an_erased_model_alone_draws_with_the_original_encoder(
    pack: ModuleType, parts: tuple, comparing: Any
) -> None:
    model, clip, _ = parts
    changed, _ = pack.nodes.backend.apply.erased_model(model, of_the_network(pack, model))
    alone = comparing(erased_model=changed)
    assert "Nothing" not in alone.report
    assert not torch.equal(alone.own[0].before, alone.own[0].after)
    both = comparing(erased_model=changed, erased_clip=clip)
    assert torch.equal(both.own[0].after, alone.own[0].after)
    other, _ = pack.nodes.backend.apply.erased_clip(clip, of_the_encoder(pack, clip))
    of_the_other = comparing(erased_clip=other)
    assert torch.equal(of_the_other.own[0].before, alone.own[0].before)
    assert not torch.equal(of_the_other.own[0].after, alone.own[0].after)


def test_nothing_changed_is_nothing_changed(parts: tuple, comparing: Any) -> None:
    found = comparing(erased_model=parts[0].clone())
    for row in (*found.own, *found.near):
        assert torch.equal(row.before, row.after)
    assert "0.0% of its range in the concept's pictures, 0.0% in the neighbours'" in found.report
    counts = re.search(r"in (\d) of 1 pictures before and in (\d) of 1 after", found.report)
    assert counts[1] == counts[2]
    assert "Nothing was erased: erased_model has the same weights as the original." in found.report
    both = comparing(erased_model=parts[0], erased_clip=parts[1].clone())
    assert "Nothing was erased: erased_model and erased_clip have" in both.report


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_model_is_no_perfect_erasure(parts: tuple, comparing: Any, value: float) -> None:
    """By a LoRA of NaN: every picture of it is black, and shows no fox."""
    broken = parts[0].clone()
    weight = broken.model.state_dict()[NETWORK]
    broken.add_patches({NETWORK: (torch.full_like(weight, value),)})
    found = comparing(erased_model=broken)
    assert found.report.startswith("0 of 2 pictures before and 2 of 2 after are not finite (NaN")
    assert "the erased model is broken" in found.report
    assert "0 of 1 after" not in found.report
    assert found.picture.isfinite().all()


@pytest.mark.slow
def test_each_further_picture_has_the_next_seed(parts: tuple, comparing: Any) -> None:
    changed = parts[0].clone()
    several = comparing(erased_model=changed, count=2)
    (row,) = several.own
    assert row.before.shape == row.after.shape == (2, SIDE, SIDE, 3)
    assert several.near[0].before.shape[0] == 2
    assert " of 2 pictures before and in " in several.report
    alone = comparing(erased_model=changed, seed=8)
    assert torch.equal(alone.own[0].before[0], row.before[1])
    assert not torch.equal(row.before[0], row.before[1])


def test_usual_prompts_and_neighbours_where_none_are_given(parts: tuple, comparing: Any) -> None:
    found = comparing(erased_model=parts[0].clone(), concept="cat", prompts=" \n", neighbours="")
    assert found.titles == ["cat", "neighbours"]
    assert labels(found.own) == ["a photo of a cat", "a good photo of the cat"]
    assert labels(found.near) == [f"a photo of a {thing}" for thing in ("house", "apple", "guitar")]
    assert " of 2 pictures before " in found.report


@pytest.mark.slow
def test_a_style_is_asked_for_and_judged_as_a_style(
    pack: ModuleType, parts: tuple, comparing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    judges = pack.unlearn.evaluate.judges.original
    asked, judge = [], judges.remains

    def noted(model: Any, pictures: torch.Tensor, *own: Any, things: list[str], **more: Any) -> Any:
        asked.append((len(pictures), *own, things))
        # With things it would ask for each style beside each of them, which takes long.
        return judge(model, pictures, *own, **{**more, "others": ["flat"]})

    monkeypatch.setattr(judges, "remains", noted)
    found = comparing(
        erased_model=parts[0].clone(), concept="watercolor", kind="style", prompts="", neighbours=""
    )
    first = "a painting in the style of"
    assert labels(found.own)[0] == f"{first} watercolor"
    assert all("in the style of watercolor" in label for label in labels(found.own))
    assert labels(found.near) == [
        "a photo of a cat",
        "a photo of a house",
        f"{first} pencil sketch",
        f"{first} photograph",
    ]
    assert found.report.startswith("watercolor: the original model sees it in ")
    comparing(
        erased_model=parts[0].clone(),
        concept="ink",
        kind="style",
        prompts="a photo of a house, ink style\na fox, ink style",
    )
    assert asked == [
        (4, ["watercolor"], "style", []),
        (4, ["ink"], "style", ["house", "fox"]),
    ]


def test_an_erased_part_of_another_model_is_refused_before_anything_is_drawn(
    pack: ModuleType, parts: tuple, comparing: Any
) -> None:
    other = build("T5, LTX")
    model, clip, vae = parts
    for erased in ({"erased_clip": other.clip}, {"erased_model": other.model}):
        with pytest.raises(ValueError, match="do not belong together"):
            comparing(**erased)
        asked = ("fox", "object", "quick", 0, 2, 4.0, SIDE, SIDE)
        with pytest.raises(ValueError, match="do not belong together"):
            run(pack.nodes.probe.ProbeErasure, model, clip, vae, *asked, **erased)

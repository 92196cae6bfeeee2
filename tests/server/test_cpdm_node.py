"""Measure Copyright (CPDM) in a real ComfyUI, with the host's image encoder, small and random."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
import small_inception
import torch
from conftest import ROOT
from graphs import node, text

from testbed.host.server import PromptError, Server

FILE, OTHER = "fid.pth", "torchvision.safetensors"


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> None:
    folder = server.output.parent / "inception"
    small_inception.write(folder / FILE)
    small_inception.write(folder / OTHER, is_fid=False)
    (folder / "notes.txt").write_text("not a file of weights")


def grey(name: str, value: float, count: int = 1, size: int = 64) -> dict[str, Any]:
    """`count` pictures of one colour."""
    colour = int(255 * value) * 0x10101
    values = {"width": size, "height": size, "batch_size": count, "color": colour}
    return {name: node("EmptyImage", **values)}


def batched(name: str, *images: str) -> dict[str, Any]:
    """One batch of several."""
    nodes, last = {}, images[0]
    for i, image in enumerate(images[1:]):
        key = name if i == len(images) - 2 else f"{name}.{i}"
        nodes[key] = node("ImageBatch", image1=[last, 0], image2=[image, 0])
        last = key
    return nodes


def measuring(**inputs: Any) -> dict[str, Any]:
    values = {
        "originals": ["originals", 0],
        "generated": ["generated", 0],
        "clip_vision": ["clip", 0],
        "inception": FILE,
    }
    return {
        "clip": node("TinyCLIPVision"),
        **grey("originals", 0.5),
        **grey("generated", 0.5, 2, 96),
        "cpdm": node("CopyrightMetric", **{**values, **inputs}),
        "json": node("PreviewAny", source=["cpdm", 3]),
    }


def record(history: dict[str, Any]) -> dict[str, Any]:
    return json.loads(text(history, "json"))


def test_pictures_before_and_after(server: Server) -> None:
    """The first picture is the original and stays it; the second becomes another."""
    graph = measuring(generated_after=["after", 0])
    graph |= grey("dark", 0.2, size=96) | grey("same", 0.5, size=96)
    # A gradient of colours would be one shade to Inception, whose mean is taken off.
    graph["half"] = node(
        "ImageCompositeMasked",
        destination=["same", 0],
        source=["dark", 0],
        x=48,
        y=0,
        resize_source=False,
    )
    graph |= batched("after", "same", "half")
    history = server.run(graph)
    (first, second) = record(history)["pairs"]
    assert [first["name"], second["name"]] == ["1.1", "1.2"]
    for pair in (first["before"], first["after"], second["before"]):
        assert pair["M_sem M_style"] == pytest.approx(0, abs=1e-6)
        assert pair["CM"] == pytest.approx(1, abs=1e-6)
    assert second["after"]["M_sem"] > 1e-4
    assert second["after"]["M_style"] > 1e-4
    assert second["after"]["CM"] == 0
    said = text(history, "cpdm")
    assert "1 of 2 are further away than before" in said
    assert "are 16 wide, but CLIP ViT-L/14's are 768" in said
    (page,) = server.images(history, "cpdm")
    assert page.width > 500


def test_files_of_weights_are_offered_and_no_others(server: Server) -> None:
    inputs = server.object_info()["CopyrightMetric"]["input"]["required"]
    assert inputs["inception"][1]["options"] == [FILE, OTHER]


def test_torchvisions_file_is_told(server: Server) -> None:
    said = text(server.run(measuring(inception=OTHER)), "cpdm")
    assert "The Inception file is torchvision's" in said


@pytest.mark.parametrize(("originals", "generated"), [(2, 3), (2, 1)])
def test_pictures_that_do_not_belong_together(
    server: Server, originals: int, generated: int
) -> None:
    graph = measuring() | grey("originals", 0.5, originals) | grey("generated", 0.5, generated)
    said = f"{generated} generated pictures cannot be shared out among 2 originals"
    with pytest.raises(PromptError, match=said) as error:
        server.run(graph)
    assert error.value.node_type == "CopyrightMetric"
    assert "\n" not in str(error.value)


def test_as_many_after_as_before(server: Server) -> None:
    graph = measuring(generated_after=["after", 0]) | grey("after", 0.2, 3)
    with pytest.raises(PromptError, match="There are 2 pictures before the erasure and 3 after"):
        server.run(graph)


def test_without_a_file_the_list_says_so(pack: ModuleType) -> None:
    """ComfyUI in this process has none."""
    cpdm = pack.nodes.cpdm
    assert cpdm.inception_choices() == [cpdm.MISSING]
    with pytest.raises(ValueError, match=r"models/inception: get .*pt_inception.*press R"):
        cpdm.find_file(cpdm.MISSING)


def test_pairs_by_their_order(pack: ModuleType) -> None:
    originals, generated = torch.zeros(2, 4, 4, 3), torch.zeros(6, 4, 4, 4)
    generated += torch.arange(6).view(6, 1, 1, 1) / 10
    found = list(pack.nodes.cpdm.pairs(originals, generated))
    assert [(pair.work, pair.name) for pair in found] == [
        ("0", "1.1"),
        ("0", "1.2"),
        ("0", "1.3"),
        ("1", "2.1"),
        ("1", "2.2"),
        ("1", "2.3"),
    ]
    assert found[4].generated.shape == (4, 4, 3)
    assert found[4].generated.mean().item() == pytest.approx(0.4)
    each = list(pack.nodes.cpdm.pairs(originals, generated[:2]))
    assert [pair.name for pair in each] == ["1", "2"]


def test_every_input_has_a_tooltip_and_the_help_page_names_it(server: Server) -> None:
    schema = server.object_info()["CopyrightMetric"]
    page = (ROOT / "nodes/web/docs/CopyrightMetric.md").read_text("utf-8")
    for group in ("required", "optional"):
        for name, (_, options) in schema["input"][group].items():
            assert len(options["tooltip"]) > 10, name
            assert f"**{name}**" in page
    assert schema["category"] == "unlearn/check"

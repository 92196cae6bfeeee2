"""Compare Erasure: its labelled picture, its figures, and the node on the real model."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from graphs import loader, node
from PIL import Image, ImageDraw, ImageFont

from testbed.host.server import Interrupted, Progress, PromptError, Server

CONCEPT = "mushroom"
PROMPTS = [f"a photo of a {CONCEPT}, noto style", f"a photo of a {CONCEPT}, ink style"]
NEIGHBOURS = ["a photo of a pineapple, glossy style", "a photo of a cat, flat style"]
CELL = 128  # pixels of a picture of the model, and of its place on the sheet
FIRST = (10, 65)  # where the first picture of the sheet begins


@pytest.fixture(scope="module")
def compare(pack: ModuleType) -> ModuleType:
    return pack.nodes.compare


# The sheet


def grey(value: float, count: int = 2, height: int = 40, width: int = 40) -> torch.Tensor:
    return torch.full((count, height, width, 3), value)


def test_before_stands_left_and_after_right(pack: ModuleType) -> None:
    row = pack.unlearn.render.sheet.Row("a label", grey(0.2, 1), grey(0.8, 1))
    picture = pack.unlearn.render.sheet.sheet({"concept": [row]}, ["a figure"])[0]
    width = picture.shape[1]
    for value, left in ((0.2, FIRST[0]), (0.8, width // 2 + 5)):
        part = picture[FIRST[1] : FIRST[1] + CELL, left : left + CELL]
        assert (part - value).abs().max() < 0.01
    assert picture[:, -9:].min() > 0.99, "a margin on the right"
    assert picture[-8:].min() > 0.99, "and below"


@pytest.mark.parametrize(
    ("height", "width", "count"), [(64, 64, 1), (600, 300, 2), (300, 1200, 3), (512, 512, 8)]
)
def test_pictures_of_any_shape_have_room(
    pack: ModuleType, height: int, width: int, count: int
) -> None:
    sheet = pack.unlearn.render.sheet
    rows = [sheet.Row("x", grey(0.0, count, height, width), grey(0.0, count, height, width))] * 2
    picture = sheet.sheet({"a": rows[:1], "b": rows[1:]}, ["figures"])[0]
    longest = 256 if max(height, width) > 256 else 128
    cell = longest * height / max(height, width) * longest * width / max(height, width)
    black = (picture.sum(-1) < 0.01).sum().item()
    assert 0.97 * 4 * count * cell < black < 1.03 * 4 * count * cell + 2000  # and the letters
    assert picture[:, -9:].min() > 0.99


def test_long_texts_are_broken_between_words(pack: ModuleType) -> None:
    pen, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(14)
    text = "a photo of a small mushroom beside a very large house, in the style of glossy"
    lines = pack.unlearn.render.sheet.wrapped(pen, text, 200, font)
    assert " ".join(lines) == text
    assert len(lines) > 2
    assert all(pen.textlength(line, font=font) <= 200 for line in lines)


# The figures


def test_mean_change_of_a_pixel_by_hand(pack: ModuleType, compare: ModuleType) -> None:
    row = pack.unlearn.render.sheet.Row
    rows = [row("a", grey(0.2), grey(0.5)), row("b", grey(0.9), grey(0.8))]
    assert compare.changed(rows) == pytest.approx(0.2)


def test_findings_count_and_average(pack: ModuleType, compare: ModuleType) -> None:
    seen = pack.unlearn.evaluate.detection.Seen
    row = pack.unlearn.render.sheet.Row
    own, near = [row("a", grey(0.0), grey(0.4))], [row("b", grey(0.5), grey(0.51))]
    before, after = [seen(True, 0.2), seen(True, 0.1)], [seen(True, 0.06), seen(False, -0.1)]
    text = "\n".join(compare.findings(["fox"], before + after, own, near))
    assert "sees it in 2 of 2 pictures before and in 1 of 2 after" in text
    assert "explains 15.0% of the loss before, -2.0% after" in text
    assert "40.0% of its range in the concept's pictures, 1.0% in the neighbours'" in text
    hardly = compare.findings(["fox"], after + after, own, near)
    assert "hardly draws the concept" in hardly[-1]


def test_pictures_that_are_not_finite_are_no_erasure(pack: ModuleType, compare: ModuleType) -> None:
    seen, row = pack.unlearn.evaluate.detection.Seen, pack.unlearn.render.sheet.Row
    broken = grey(0.4)
    broken[1, 0, 0, 0] = torch.nan
    own, near = [row("a", grey(0.0), broken)], [row("b", grey(0.5), grey(0.5))]
    looks_perfect = [seen(True, 0.2), seen(False, 0.0)]
    (said,) = compare.findings(["fox"], looks_perfect, own, near)
    assert said == (
        "0 of 4 pictures before and 1 of 4 after are not finite (NaN or infinite), so nothing can "
        "be said of the erasure: the erased model is broken. Check its weights, their precision "
        "and the LoRAs on it."
    )
    near = [row("b", broken / 0, grey(0.5))]
    (said,) = compare.findings(["fox"], looks_perfect, own, near)
    assert said.startswith("2 of 4 pictures before and 1 of 4 after are not finite")
    assert "the original model, its text encoder or the VAE is broken" in said


def test_prompts_where_none_are_given(compare: ModuleType) -> None:
    assert compare.own_prompts(["fox"], "object")[0] == "a photo of a fox"
    assert len(compare.own_prompts(["fox"], "object")) == 2
    assert compare.own_prompts(["fox", "owl"], "object") == ["a photo of a fox", "a photo of a owl"]
    near = compare.near_prompts(["cat"], "object")
    assert len(near) == 3
    assert not any("cat" in prompt for prompt in near)
    assert sum("in the style of" in p for p in compare.near_prompts(["watercolor"], "style")) == 2


def test_things_are_found_in_prompts(compare: ModuleType) -> None:
    prompts = ["A (cat:1.2), flat style", "the house of a Fox.", "ice cream in comic book style"]
    assert set(compare.things_in(prompts, ["flat", "comic book"])) == {
        "cat",
        "house",
        "fox",
        "ice cream",
    }
    assert "book" in compare.things_in(prompts, ["flat"])


# The node


def comparing(**inputs: Any) -> dict[str, Any]:
    values = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "vae": ["base", 2],
        "concept": CONCEPT,
        "kind": "object",
        "prompts": "\n".join(PROMPTS),
        "neighbours": "\n".join(NEIGHBOURS),
        "count": 1,
        "seed": 3,
        "steps": 12,
        "cfg": 5.0,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "width": CELL,
        "height": CELL,
    }
    return loader() | {"compare": node("CompareErasure", **{**values, **inputs})}


def erasing() -> dict[str, Any]:
    return {
        "erase": node(
            "FewShotEncoderUnlearn",
            model=["base", 0],
            clip=["base", 1],
            vae=["base", 2],
            concept=CONCEPT,
            kind="object",
            shots=4,
            size=CELL,
            mode="balanced",
            trainable="mlp-final-attn",
            rank=0,
            max_steps=60,
            epochs=4,
            seed=0,
            filename_prefix="loras/compared",
            verdict=False,
        )
    }


def by_ksampler(name: str, clip: list, prompt: str) -> dict[str, Any]:
    """The picture as a user's own workflow draws it."""
    return {
        f"{name}+": node("CLIPTextEncode", clip=clip, text=prompt),
        f"{name}-": node("CLIPTextEncode", clip=clip, text=""),
        f"{name}.latent": node("EmptyLatentImage", width=CELL, height=CELL, batch_size=1),
        f"{name}.sample": node(
            "KSampler",
            model=["base", 0],
            positive=[f"{name}+", 0],
            negative=[f"{name}-", 0],
            latent_image=[f"{name}.latent", 0],
            seed=3,
            steps=12,
            cfg=5.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
        ),
        f"{name}.decode": node("VAEDecode", samples=[f"{name}.sample", 0], vae=["base", 2]),
        name: node("PreviewImage", images=[f"{name}.decode", 0]),
    }


@pytest.fixture(scope="module")
def compared(server: Server) -> tuple[dict[str, Any], list[Progress]]:
    graph = comparing(erased_clip=["erase", 0]) | erasing()
    graph |= by_ksampler("before", ["base", 1], PROMPTS[0])
    graph |= by_ksampler("after", ["erase", 0], PROMPTS[0])
    events: list[Progress] = []
    return server.run(graph, on_progress=events.append), events


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB"), dtype=int)


@pytest.mark.slow
def test_the_concept_is_gone_and_its_neighbours_are_not(compared: tuple) -> None:
    text = "".join(compared[0]["outputs"]["compare"]["text"])
    seen = re.search(r"sees it in (\d) of 2 pictures before and in (\d) of 2 after", text).groups()
    assert seen[0] == "2"
    assert seen[1] in "01"
    own, near = (float(share) for share in re.findall(r"([\d.]+)% (?:of its range )?in the", text))
    assert own > 2 * near
    before, after = map(
        float, re.search(r"explains (-?[\d.]+)% .* (-?[\d.]+)% after", text).groups()
    )
    assert after < before / 2


@pytest.mark.slow
def test_it_draws_what_ksampler_draws(server: Server, compared: tuple) -> None:
    (whole,) = server.images(compared[0], "compare")
    sheet = pixels(whole)
    left, top = FIRST
    for name, at in (("before", left), ("after", sheet.shape[1] // 2 + 5)):
        (own,) = server.images(compared[0], name)
        drawn = sheet[top : top + CELL, at : at + CELL]
        assert np.abs(drawn - pixels(own)).max() <= 2, name


@pytest.mark.slow
def test_it_says_what_it_is_doing(compared: tuple) -> None:
    told = [e.text for e in compared[1] if e.node == "compare" and e.text]
    assert any(text.startswith("drawing before\n") for text in told)
    assert any(text.startswith("drawing after\n") for text in told)
    assert any(text.startswith("judging\n") for text in told)


def test_no_concept_is_a_sentence(server: Server) -> None:
    with pytest.raises(PromptError, match="No concept is named"):
        server.run(comparing(concept=" , ", erased_clip=["base", 1]))


def test_it_can_be_cancelled(server: Server) -> None:
    def cancel(event: Progress) -> None:
        if (event.text or "").startswith("drawing before"):
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(comparing(erased_clip=["base", 1], steps=500), on_progress=cancel)

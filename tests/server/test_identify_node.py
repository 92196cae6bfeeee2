"""Identify Concept in a real server, and its ranking on the trained model."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from graphs import loader, node, text

from testbed.host.server import Interrupted, Progress, PromptError, Server
from testbed.model import drawings
from testbed.model.vocabulary import HELD_OUT, STYLES
from testbed.studies.identify import objects
from unlearn.core.erasure import Erasure

FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


# The real model


@pytest.fixture(scope="module")
def model(pack: ModuleType):
    """IconCanvas as a DiffusionModel of the pack's own `unlearn`, open for asking."""
    import testbed.model.pack

    model = pack.nodes.backend.model.ComfyModel(*testbed.model.pack.checkpoint(), size=(128, 128))
    with torch.inference_mode(), model.training():
        yield model


@pytest.mark.slow
def test_it_names_drawings_that_the_model_was_never_shown(pack: ModuleType, model) -> None:
    """A few of the benchmark's sets; `python -m testbed.studies.identify` measures all of them."""
    ask = pack.unlearn.evaluate.classifier.identify
    sets = [one for one in objects() if one.answer in ("cat", "banana", "rocket", "bell")]
    rankings = [ask(model, one.images, one.words, draws=12) for one in sets]
    right = [ranking.best == one.answer for one, ranking in zip(sets, rankings)]
    assert sum(right) >= 3
    assert all(ranking.words[0].explained > 0 for ranking, ok in zip(rankings, right) if ok)


@pytest.mark.slow
def test_it_names_the_style_of_things_drawn_in_it(pack: ModuleType, model) -> None:
    ask = pack.unlearn.evaluate.classifier.identify
    words = {style: sorted(w for w, of in HELD_OUT if of == style)[:2] for style in ("ink", "flat")}
    things = [word for some in words.values() for word in some]
    for style, some in words.items():
        images = torch.stack([drawings.of(word)[STYLES.index(style)] for word in some])
        assert ask(model, images, STYLES, "style", draws=24, things=things).best == style


# The node


def asking(**inputs: Any) -> dict[str, Any]:
    """Two mushrooms and the node: ["ask", 0..3] are its outputs."""
    values = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "vae": ["base", 2],
        "images": ["both", 0],
        "candidates": "cat, pizza\nmushroom\nhouse",
        "kind": "object",
        "draws": 12,
        "seed": 0,
    }
    return loader() | {
        "one": node("LoadImage", image="iconcanvas_mushroom_1.png"),
        "two": node("LoadImage", image="iconcanvas_mushroom_3.png"),
        "both": node("ImageBatch", image1=["one", 0], image2=["two", 0]),
        "ask": node("IdentifyConcept", **{**values, **inputs}),
        "word": node("PreviewAny", source=["ask", 0]),
        "chart": node("PreviewImage", images=["ask", 2]),
        "protect": node("PreviewAny", source=["ask", 3]),
    }


@pytest.fixture(scope="module")
def asked(server: Server) -> tuple[dict[str, Any], list[Progress]]:
    """A run with an encoder in whose file every feed-forward weight of a layer was shaken."""
    shaken = torch.randn(768, 192, generator=torch.Generator().manual_seed(0))
    erasure = Erasure({FC1: {"diff": 0.2 * shaken}}, {"concepts": ["mushroom"]})
    erasure.save(server.output / "loras" / "shaken.safetensors")
    events: list[Progress] = []
    erased = node("LoadErasedCLIP", clip=["base", 1], erasure_name="shaken.safetensors", strength=1)
    graph = asking(erased_clip=["erased", 0]) | {"erased": erased}
    return server.run(graph, on_progress=events.append), events


def test_node_gives_the_word_and_says_how_sure_it_is(asked: tuple) -> None:
    history, _ = asked
    assert text(history, "word") == "mushroom"
    report = text(history, "ask")
    assert re.search(r"The model calls it: mushroom \(confidence (over )?\d+%\)", report)
    assert re.search(r"1\. mushroom: explains \d+\.\d%, 12 draws", report)
    assert "4 candidates, 2 pictures, 60 evaluations" in report


def test_node_proposes_what_moved_for_protection(asked: tuple) -> None:
    history, _ = asked
    proposed = text(history, "protect").split(", ")
    assert set(proposed) == {"cat", "pizza", "house"}
    assert re.search(r"Words to protect, .*: \w+ \d+%", text(history, "ask"))


def test_node_draws_the_ranking(server: Server, asked: tuple) -> None:
    (picture,) = server.images(asked[0], "chart")
    pixels = np.asarray(picture.convert("RGB"), dtype=int)
    assert pixels.shape[1] == 512
    # The first bar is dark, the others pale.
    assert (np.abs(pixels - (20, 60, 150)).sum(2) < 30).sum() > 500


def test_node_reports_progress(asked: tuple) -> None:
    steps = [e for e in asked[1] if e.node == "ask" and e.total == 60]
    assert steps
    assert any("ahead: " in (e.text or "") for e in asked[1] if e.node == "ask")


def test_node_can_be_cancelled(server: Server) -> None:
    def cancel(event: Progress) -> None:
        if "rows, ahead" in (event.text or ""):
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(asking(draws=4096), on_progress=cancel)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [({"candidates": " fox , "}, "1 candidate is given; type at least two")],
    ids=["one candidate"],
)
def test_bad_input_stops_the_node_with_one_sentence(
    server: Server, inputs: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PromptError, match=sentence) as error:
        server.run(asking(**inputs))
    assert error.value.node_type == "IdentifyConcept"
    assert "\n" not in str(error.value)

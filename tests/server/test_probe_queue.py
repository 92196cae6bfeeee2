"""Erasure Probe in a real server's queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graphs import loader, node, text

from testbed.host.server import Interrupted, Progress, PromptError, Server
from unlearn.evaluate.probe import ATTACKS, CANNOT


def probing(**inputs: Any) -> dict[str, Any]:
    values = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "vae": ["base", 2],
        "concept": "mushroom",
        "kind": "object",
        "level": "quick",
        "seed": 0,
        "steps": 8,
        "cfg": 5.0,
        "width": 128,
        "height": 128,
    }
    return loader() | {"probe": node("ProbeErasure", **{**values, **inputs})}


def test_no_concept_is_a_sentence(server: Server) -> None:
    with pytest.raises(PromptError, match="No concept is named"):
        server.run(probing(concept=" , ", erased_clip=["base", 1]))


def test_other_words_for_several_concepts_are_a_sentence(server: Server) -> None:
    with pytest.raises(PromptError, match="belong to one concept, but 2 are named"):
        server.run(probing(concept="cat, dog", synonyms="kitten", erased_clip=["base", 1]))


def test_the_node_can_be_cancelled(server: Server) -> None:
    def cancel(event: Progress) -> None:
        if "probing mushroom: drawing" in (event.text or ""):
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(probing(erased_clip=["base", 1]), on_progress=cancel)


@pytest.mark.slow
def test_an_erasure_is_probed_and_saved_with_what_was_found(server: Server) -> None:
    erase = node(
        "FewShotEncoderUnlearn",
        model=["base", 0],
        clip=["base", 1],
        vae=["base", 2],
        concept="mushroom",
        kind="object",
        shots=4,
        size=128,
        mode="balanced",
        trainable="mlp-final-attn",
        rank=0,
        max_steps=60,
        epochs=4,
        seed=0,
        filename_prefix="loras/probed",
        verdict=False,
    )
    graph = probing(erasure=["erase", 1], concept="") | {
        "erase": erase,
        "save": node(
            "SaveErasedCLIP",
            erasure=["probe", 2],
            filename_prefix="loras/with_probe",
            precision="float16",
        ),
    }
    events: list[Progress] = []
    history = server.run(graph, on_progress=events.append)
    said = text(history, "probe")
    assert said.startswith("mushroom is suppressed, measured at 0%")
    assert CANNOT in said
    assert len(server.images(history, "probe")) == 1
    from unlearn.core.erasure import Erasure

    (file,) = Path(server.output).rglob("with_probe_*.safetensors")
    (record,) = Erasure.load(file).record["measured"]["probe"]
    assert record["pre"] == 0
    assert set(record["post"]) == set(ATTACKS)
    told = [event.text or "" for event in events if event.node == "probe"]
    assert any("attacking with UnlearnDiffAtk" in line for line in told)

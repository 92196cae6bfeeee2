"""The workflows for Wan run to their end on the host's own classes, small and with random weights.

Nothing is learnt there, so this says that every node does its part on video latents and UMT5, that
the erasure reaches the clips and is saved and loaded, and nothing of how well it works.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import SUPPORT
from graphs import distance, drawn

from testbed.host.server import Server, extended
from testbed.host.workflow import api_prompt
from testbed.showcase import thumbnails
from testbed.showcase.video_thumbnails import LOADED, TO_VIDEO

pytestmark = pytest.mark.slow
LOADERS = {"UNETLoader": 0, "CLIPLoader": 1, "VAELoader": 2}  # and the outputs of TinyWan


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("wan")
    args = extended(folder, SUPPORT / "tiny_wan")
    with Server(folder, args=args, environment={"PYTHONPATH": str(SUPPORT)}) as running:
        yield running


def small(server: Server, name: str) -> dict[str, Any]:
    """A workflow's prompt with the small model in place of the files, and small clips.

    It saves their latents, too: 8 bits are too coarse for what three steps change.
    """
    prompt = api_prompt(thumbnails.load(name), server.object_info())
    outputs = {
        node: LOADERS[prompt[node]["class_type"]]
        for node in list(prompt)
        if prompt[node]["class_type"] in LOADERS
    }
    assert sorted(outputs.values()) == [0, 1, 2]
    for node in outputs:
        del prompt[node]
    prompt["tiny"] = {"class_type": "TinyWan", "inputs": {}}
    for node in prompt.values():
        inputs = node["inputs"]
        for key, value in inputs.items():
            if isinstance(value, list) and value[0] in outputs:
                inputs[key] = ["tiny", outputs[value[0]]]
        if node["class_type"] == "EmptyHunyuanLatentVideo":
            inputs.update(width=64, height=48, length=min(inputs["length"], 5))
        if "steps" in inputs:
            inputs["steps"] = 2
        if node["class_type"] == "FewShotEncoderUnlearn":
            inputs.update(max_steps=3, size=64, verdict=False)
    for shown in thumbnails.comparisons(thumbnails.load(name)).values():
        for preview in map(str, shown):
            decode = prompt[prompt[preview]["inputs"]["images"][0]]
            inputs = {"samples": decode["inputs"]["samples"], "filename_prefix": f"latents/{name}"}
            prompt[saved(preview)] = {"class_type": "SaveLatent", "inputs": inputs}
    return prompt


def saved(preview: str | int) -> str:
    """The node that saves the latents of what a node shows."""
    return f"{preview}.latents"


def clips(server: Server, history: dict[str, Any], name: str) -> dict[str, list[np.ndarray]]:
    """What is compared, to the frames before and after, (N, H, W, 3)."""
    return {
        what: [
            np.stack([np.asarray(p.convert("RGB"), float) for p in server.images(history, node)])
            for node in nodes
        ]
        for what, nodes in thumbnails.comparisons(thumbnails.load(name)).items()
    }


def latents(server: Server, history: dict[str, Any], name: str) -> dict[str, list[torch.Tensor]]:
    """What is compared, to the latents before and after."""
    return {
        what: [drawn(server, history, saved(preview)) for preview in shown]
        for what, shown in thumbnails.comparisons(thumbnails.load(name)).items()
    }


@pytest.fixture(scope="module")
def unlearned(server: Server) -> dict[str, Any]:
    return server.run(small(server, TO_VIDEO))


def test_pictures_unlearn_for_clips(server: Server, unlearned: dict[str, Any]) -> None:
    shown = clips(server, unlearned, TO_VIDEO)
    assert set(shown) == {"mushroom", "pineapple"}
    for before, after in shown.values():
        assert before.shape == after.shape == (5, 48, 64, 3)
        assert (before != after).any(-1).mean() > 0.1  # of the pixels
    (pictures,) = (
        node["id"]
        for node in thumbnails.load(TO_VIDEO)["nodes"]
        if node.get("title") == "The pictures"
    )
    assert len(server.images(unlearned, pictures)) == 4  # videos of one frame each
    assert len(list((server.output / "loras").glob("erased_umt5_*.safetensors"))) == 1


def test_clips_are_saved_side_by_side(server: Server, unlearned: dict[str, Any]) -> None:
    files = sorted((server.output / "video").glob("wan_unlearned_*.mp4"))
    assert len(files) == 2
    for file in files:
        with av.open(str(file)) as video:
            stream = video.streams.video[0]
            assert (stream.width, stream.height) == (2 * 64 + 8, 48)
            assert stream.average_rate == 16
            assert sum(1 for _ in video.decode(stream)) == 5


def test_saved_erasure_draws_what_was_trained(server: Server, unlearned: dict[str, Any]) -> None:
    loaded = latents(server, server.run(small(server, LOADED)), LOADED)
    trained = latents(server, unlearned, TO_VIDEO)
    assert loaded.keys() == trained.keys()
    for what, (before, after) in trained.items():
        effect = distance(before, after)
        assert effect > 0
        assert distance(loaded[what][0], before) < 1e-4 * effect
        assert distance(loaded[what][1], after) < 0.01 * effect  # the file is in half precision

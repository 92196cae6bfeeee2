"""An erased encoder in AnimateDiff-Evolved, in the real host: where that pack is at hand.

It is on no package index. CONCEPT_UNLEARN_ANIMATEDIFF names its folder; without it none of these
tests runs, and each says so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import input_folder
from test_workflows import assert_fits, executed

from testbed.host import evolved
from testbed.host.server import Server
from testbed.host.workflow import api_prompt
from testbed.model import drawings
from testbed.model.judge import Judge
from testbed.model.vocabulary import FRAMES
from testbed.motion import motion
from testbed.showcase import thumbnails, video_thumbnails

pytestmark = pytest.mark.skipif(bool(evolved.missing()), reason=f"not run: {evolved.missing()}")
WORKFLOW = video_thumbnails.ANIMATEDIFF


# In this process


@pytest.fixture(scope="module")
def nodes(host: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The host's nodes with AnimateDiff-Evolved's among them, and IconCanvas's motion module."""
    import folder_paths

    evolved.load(host)
    folder = tmp_path_factory.mktemp("models")
    shutil.copy(motion.WEIGHTS, folder / evolved.MOTION)
    folder_paths.add_model_folder_path("animatediff_models", str(folder))
    return host


def run(nodes: ModuleType, name: str, **inputs: Any) -> Any:
    """The first output of a node."""
    node = nodes.NODE_CLASS_MAPPINGS[name]
    return getattr(node(), node.FUNCTION)(**inputs)[0]


def clip_of(nodes: ModuleType, model: Any, clip: Any, text: str) -> torch.Tensor:
    """Latents of a clip, by the host's own nodes, in three steps."""
    positive, negative = (
        run(nodes, "CLIPTextEncode", clip=clip, text=words) for words in (text, "")
    )
    return run(
        nodes,
        "KSampler",
        model=model,
        seed=1,
        steps=3,
        cfg=5.0,
        sampler_name="dpmpp_2m",
        scheduler="karras",
        positive=positive,
        negative=negative,
        latent_image={"samples": torch.zeros(FRAMES, 4, 16, 16)},
        denoise=1.0,
    )["samples"]


def test_it_draws_with_the_erased_encoder_what_the_testbed_draws(
    nodes: ModuleType, pack: ModuleType
) -> None:
    """Its clips are those that the motion modules in the host's UNet make, for either encoder."""
    from testbed.model.pack import checkpoint

    model, clip, vae = checkpoint()
    science, settings = pack.unlearn.methods.few_shot, {"max_steps": 6, "seed": 0}
    comfy_model = pack.nodes.backend.model.ComfyModel(model, clip, vae, size=(128, 128))
    with torch.inference_mode(), comfy_model.training():
        erasure = science.few_shot(
            comfy_model,
            ["mushroom"],
            drawings.of("mushroom")[:2],
            science.FewShotSettings(**settings),
        )
    _, erased = pack.nodes.backend.apply.erased(model, clip, erasure)
    text = "a photo of a mushroom, noto style, slide"
    with torch.inference_mode():
        theirs = run(
            nodes,
            "ADE_UseEvolvedSampling",
            model=model,
            beta_schedule="use existing",
            m_models=run(
                nodes,
                "ADE_ApplyAnimateDiffModelSimple",
                motion_model=run(nodes, "ADE_LoadAnimateDiffModel", model_name=evolved.MOTION),
            ),
        )
        drawn = [clip_of(nodes, theirs, encoder, text) for encoder in (clip, erased, clip)]
        still = clip_of(nodes, model, clip, text)
        with motion.inserted(model.model.diffusion_model, motion.load()):
            wanted = [clip_of(nodes, model, encoder, text) for encoder in (clip, erased)]
    for found, expected in zip(drawn, wanted):
        assert torch.allclose(found, expected, atol=2e-3)
    assert torch.equal(drawn[0], drawn[2])  # the erasure stayed with its own branch
    assert (drawn[0] - drawn[1]).abs().mean() > 0.02
    assert (drawn[0] - still).abs().mean() > 0.02


# The workflow, on a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("evolved")
    with evolved.server(folder, motion.WEIGHTS, input_folder(folder)) as running:
        yield running


def test_nodes_fit_its_schemas(server: Server) -> None:
    info = server.object_info()
    theirs = [n for n in executed(thumbnails.load(WORKFLOW)) if n["type"].startswith("ADE_")]
    assert len(theirs) == 3
    for node in theirs:
        assert_fits(node, info[node["type"]])
        assert node["properties"]["cnr_id"] == "comfyui-animatediff-evolved"


def test_before_and_after_differ_in_the_encoder_alone(server: Server) -> None:
    workflow = thumbnails.load(WORKFLOW)
    prompt = api_prompt(workflow, server.object_info())

    def chain(node: str) -> Any:
        """All that decides a clip, with the encoder left out."""
        inputs = {
            key: chain(value[0]) if isinstance(value, list) else value
            for key, value in prompt[node]["inputs"].items()
            if key != "clip"
        }
        return prompt[node]["class_type"], inputs

    pairs = thumbnails.comparisons(workflow)
    assert len(pairs) == 2
    for before, after in pairs.values():
        assert chain(str(before)) == chain(str(after))


@pytest.mark.slow
def test_workflow_runs_and_the_concept_is_gone(server: Server) -> None:
    video_thumbnails.erase_first(server)
    workflow = thumbnails.load(WORKFLOW)
    history = server.run(api_prompt(workflow, server.object_info()), workflow)
    judge, seen = Judge(), {}
    for what, sides in video_thumbnails.frames(server, history).items():
        for frames in sides:
            assert [frame.size for frame in frames] == [(128, 128)] * FRAMES
            pixels = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
            words = [answer["object"] for answer in judge(torch.from_numpy(pixels) / 255)]
            seen.setdefault(what, []).append(words.count(what.split(",")[0]) / FRAMES)
    for file in sorted((server.output / "video").glob("*.mp4")):
        with av.open(str(file)) as video:
            stream = video.streams.video[0]
            assert (stream.width, stream.height) == (2 * 128 + 8, 128)
            assert sum(1 for _ in video.decode(stream)) == FRAMES
    assert len(list((server.output / "video").glob("*.mp4"))) == 2
    assert seen["mushroom, slide"][1] <= 0.15, seen
    assert seen["mushroom, slide"][0] >= 0.85, seen
    assert min(seen["pineapple, grow"]) >= 0.85, seen

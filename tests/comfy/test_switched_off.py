"""A graph in which a node of ours is bypassed or muted runs, and draws with the original."""

from __future__ import annotations

import asyncio
import json
from types import ModuleType
from typing import Any

import pytest
from graphs import node
from prompts import executed, refused
from templates import native, switched

from testbed.host.workflow import BYPASSED, MUTED, api_prompt
from testbed.showcase.thumbnails import FOLDER

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")
FILES = sorted(FOLDER.glob("*.json"))
HOW = {MUTED: "muted", BYPASSED: "bypassed"}


@pytest.fixture(scope="module")
def info(pack: ModuleType) -> dict[str, Any]:
    """What api_prompt needs of the schemas of the host and the pack."""
    from comfy_api.internal import _ComfyNodeInternal

    import nodes

    asyncio.run(nodes.init_builtin_extra_nodes())
    return {
        name: one.GET_NODE_INFO_V1()
        if issubclass(one, _ComfyNodeInternal)
        else {"input": one.INPUT_TYPES(), "display_name": name, "category": one.CATEGORY}
        for name, one in nodes.NODE_CLASS_MAPPINGS.items()
    }


def asked(workflow: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The prompt that the host looks at, as the browser's request becomes it."""
    from server import PromptServer

    more = {"extra_pnginfo": {"workflow": workflow}}
    request = {"prompt": api_prompt(workflow, info), "extra_data": more}
    return PromptServer.instance.trigger_on_prompt(request)["prompt"]


def faults(prompt: dict[str, Any]) -> set[tuple[str, str]]:
    """What the host has against a prompt, but for files that are not here."""
    missing = ("not in list", "Invalid image file")
    return {
        (name, line)
        for name, lines in refused(prompt).items()
        for line in lines
        if not any(one in line for one in missing)
    }


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("mode", HOW, ids=HOW.get)
def test_no_template_turns_red(
    pack: ModuleType, info: dict[str, Any], file: Any, mode: int
) -> None:
    """Each of our nodes in turn."""
    workflow = native(json.loads(file.read_text("utf-8")))
    ours = {
        one.define_schema().node_id
        for one in asyncio.run(pack.nodes.ConceptUnlearn().get_node_list())
    }
    own = [one for one in workflow["nodes"] if one["type"] in ours]
    whole = api_prompt(workflow, info)
    usual = faults(whole)  # without the nodes of AnimateDiff-Evolved
    assert own
    for one in own:
        prompt = asked(switched(workflow, one["id"], mode), info)
        assert faults(prompt) <= usual, one["type"]
        drawing = [key for key, n in whole.items() if n["class_type"] == "KSampler"]
        assert set(drawing) <= prompt.keys(), one["type"]


@pytest.mark.parametrize("mode", HOW, ids=HOW.get)
def test_both_branches_draw_with_the_original(info: dict[str, Any], mode: int) -> None:
    for name in (
        "02 Erase with pictures (Few-Shot)",
        "04 Erase from the denoiser (Key-Step)",
        "03 Use a saved erasure",
    ):
        workflow = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
        (training,) = [
            n["id"]
            for n in workflow["nodes"]
            if n["type"].endswith("Unlearn") or n["type"] == "LoadErasedCLIP"
        ]
        prompt = asked(switched(workflow, training, mode), info)
        (loader,) = [k for k, n in prompt.items() if n["class_type"] == "CheckpointLoaderSimple"]
        sockets = {
            "KSampler": {"model": 0},
            "CLIPTextEncode": {"clip": 1},
            "CompareErasure": {"model": 0, "clip": 1, "erased_model": 0, "erased_clip": 1},
        }
        read = 0
        for n in prompt.values():
            for socket, output in sockets.get(n["class_type"], {}).items():
                read += socket in n["inputs"]
                assert n["inputs"].get(socket) in (None, [loader, output]), (name, socket)
        assert read


def test_a_prompt_without_such_a_node_stays_as_it_is(info: dict[str, Any]) -> None:
    from server import PromptServer

    workflow = json.loads((FOLDER / "03 Use a saved erasure.json").read_text("utf-8"))
    request = {"prompt": api_prompt(workflow, info)}
    assert PromptServer.instance.trigger_on_prompt(request) is request
    request["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
    assert PromptServer.instance.trigger_on_prompt(request) is request


def test_compare_and_probe_say_that_nothing_was_erased(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the browser asks for them where the training node before them is muted."""
    judges = pack.unlearn.evaluate.judges.original
    judge = judges.remains
    few = {"others": ["cat", "house"], "draws": 2}  # asking takes longest
    monkeypatch.setattr(judges, "remains", lambda *a, **m: judge(*a, **{**m, **few}))
    usual = {"model": ["base", 0], "clip": ["base", 1], "vae": ["base", 2], "concept": "fox"}
    usual |= {"kind": "object", "seed": 0, "steps": 1, "cfg": 1.0, "width": 64, "height": 64}
    drawn = {"prompts": "a fox", "neighbours": "a cat", "count": 1}
    drawn |= {"sampler_name": "euler", "scheduler": "normal"}
    prompt = {
        "base": node("CheckpointLoaderSimple", ckpt_name="iconcanvas.safetensors"),
        "compare": node("CompareErasure", **usual, **drawn),
        "probe": node("ProbeErasure", **usual, level="quick"),
        "save": node("SaveErasedCLIP", erasure=["probe", 2]),
        "picture": node("PreviewImage", images=["probe", 0]),
    }
    shown, error = executed(prompt, "compare", "save", "picture")
    assert error is None
    assert shown["compare"]["text"][0].startswith("Nothing was erased: neither erased_clip nor")
    assert shown["compare"]["images"]
    assert shown["probe"]["text"][0].startswith("Nothing was erased, so nothing is probed")
    assert shown["save"]["text"][0].startswith("Nothing is saved")
    assert shown["picture"]["images"]

"""The shipped workflows fit the nodes they are made of, and run to their end on the real model."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from templates import native

from testbed.host.server import Server
from testbed.host.workflow import NOT_EXECUTED, api_prompt
from testbed.model.judge import Judge
from testbed.showcase import thumbnails, video_thumbnails

FILES = sorted(thumbnails.FOLDER.glob("*.json"))
DOCS = thumbnails.FOLDER.parent / "nodes" / "web" / "docs"
PACK = "comfyui-concept-unlearn"
# Their ids differ between versions of ComfyUI.
MOVED = {"SaveLoRA", "SaveLoRANode", "LoadImageSetFromFolder", "LoadImageSetFromFolderNode"}
TITLE_BAR = 30  # pixels above a node's "pos"
FILE_NAMES = {"ckpt_name", "unet_name", "clip_name", "vae_name", "erasure_name", "image"}
# Where the loaders look for their files.
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "ADE_LoadAnimateDiffModel": "animatediff_models",
}

each_workflow = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def load(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def executed(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] not in NOT_EXECUTED]


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, Any]:
    return server.object_info()


@pytest.fixture(scope="module")
def few_shot(server: Server, checkpoint: Path) -> dict[str, Any]:
    """The history of few_shot_encoder_unlearn, run to its end."""
    workflow = thumbnails.load("few_shot_encoder_unlearn")
    return server.run(api_prompt(workflow, server.object_info()), workflow)


def test_all_are_shipped() -> None:
    assert [file.stem for file in FILES] == sorted(thumbnails.NAMES + video_thumbnails.NAMES)


@each_workflow
def test_has_a_thumbnail(file: Path) -> None:
    with Image.open(file.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG"
        assert 256 <= picture.width <= 1024


@each_workflow
def test_is_in_the_browsers_format(file: Path) -> None:
    workflow = load(file)
    assert workflow["version"] == 0.4
    assert workflow["last_node_id"] == max(node["id"] for node in workflow["nodes"])
    assert workflow["last_link_id"] == max(link[0] for link in workflow["links"])
    assert len({node["id"] for node in workflow["nodes"]}) == len(workflow["nodes"])
    orders = [node["order"] for node in workflow["nodes"]]
    assert sorted(orders) == list(range(len(orders)))
    assert "definitions" not in workflow  # subgraphs: older browsers have none


@each_workflow
def test_nothing_overlaps(file: Path) -> None:
    boxes = {}
    for node in load(file)["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[node["id"]] = (x, y - TITLE_BAR, x + width, y + height)
    for (one, a), (two, b) in combinations(boxes.items(), 2):
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f"nodes {one} and {two} overlap"


@each_workflow
def test_reads_from_left_to_right(file: Path) -> None:
    workflow = load(file)
    left = {node["id"]: node["pos"][0] for node in workflow["nodes"]}
    for _, origin, _, target, _, _ in workflow["links"]:
        assert left[origin] <= left[target]


@each_workflow
def test_every_executed_node_is_in_a_group(file: Path) -> None:
    workflow = load(file)
    for node in executed(workflow):
        (x, y), (width, height) = node["pos"], node["size"]
        assert any(
            left <= x and top <= y - TITLE_BAR and x + width <= left + w and y + height <= top + h
            for left, top, w, h in (group["bounding"] for group in workflow["groups"])
        ), f"node {node['id']} is in no group"


@each_workflow
def test_teaches(file: Path) -> None:
    notes = [n for n in load(file)["nodes"] if n["type"] == "MarkdownNote"]
    text = " ".join(note["widgets_values"][0] for note in notes)
    assert "not removed for good" in text
    assert "SD 1.5" in text or "Stable Diffusion 1.5" in text


@each_workflow
def test_links_agree_with_the_sockets(file: Path) -> None:
    workflow = load(file)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, origin, slot, target, place, kind in workflow["links"]:
        output, socket = nodes[origin]["outputs"][slot], nodes[target]["inputs"][place]
        assert link in output["links"]
        assert socket["link"] == link
        assert output["type"] == kind
        assert kind == socket["type"] or socket["type"] == "*"
    ends = {link[0] for link in workflow["links"]}
    for node in workflow["nodes"]:
        named = [socket["link"] for socket in node["inputs"] if socket["link"] is not None]
        for output in node["outputs"]:
            named += output["links"] or []
        assert set(named) <= ends


@each_workflow
def test_nodes_fit_their_schemas(file: Path, info: dict[str, Any]) -> None:
    for node in executed(native(load(file))):
        assert node["type"] not in MOVED
        schema = info[node["type"]]
        own = schema["python_module"].startswith("custom_nodes.")
        assert node["properties"]["cnr_id"] == (PACK if own else "comfy-core")
        assert_fits(node, schema)


def assert_fits(node: dict[str, Any], schema: dict[str, Any]) -> None:
    """A saved node has the sockets of its schema, no more and no less."""
    assert node["properties"]["Node name for S&R"] == node["type"]
    declared = {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}
    saved = {socket["name"]: socket["type"] for socket in node["inputs"]}
    saved.pop("upload", None)  # the browser's own button on Load Image
    assert saved == {
        name: "COMBO" if isinstance(spec[0], list) else spec[0] for name, spec in declared.items()
    }
    assert [(o["name"], o["type"]) for o in node["outputs"]] == list(
        zip(schema["output_name"], schema["output"])
    )


@each_workflow
def test_choices_are_among_those_offered(file: Path, info: dict[str, Any]) -> None:
    """All but file names, which depend on what a user has."""
    for node in api_prompt(native(load(file)), info).values():
        inputs = info[node["class_type"]]["input"]
        declared = {**inputs.get("required", {}), **inputs.get("optional", {})}
        for name, value in node["inputs"].items():
            if name in FILE_NAMES or isinstance(value, list):
                continue
            kind, *options = declared[name]
            offered = kind if isinstance(kind, list) else dict(*options).get("options", ())
            keys = [one["key"] if isinstance(one, dict) else one for one in offered]
            assert not keys or value in keys, (node["class_type"], name, value)


@each_workflow
def test_links_feed_all_that_has_no_widget(file: Path) -> None:
    for node in executed(load(file)):
        for socket in node["inputs"]:
            optional = socket.get("shape") == 7
            assert "widget" in socket or socket["link"] is not None or optional


@each_workflow
def test_linked_widgets_show_what_they_are_fed(file: Path, info: dict[str, Any]) -> None:
    """A saved value beside a link is what the user sees, and falls back to when the link is cut."""
    workflow = native(load(file))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    unlinked = {
        **workflow,
        "nodes": [
            {**node, "inputs": [{**socket, "link": None} for socket in node["inputs"]]}
            for node in workflow["nodes"]
        ],
    }
    alone = api_prompt(unlinked, info)
    for node in executed(workflow):
        for socket in node["inputs"]:
            if "widget" in socket and socket["link"] is not None:
                source = nodes[links[socket["link"]][1]]
                value = alone[str(node["id"])]["inputs"][socket["name"]]
                assert value == source["widgets_values"][0], (node["id"], socket["name"])


@each_workflow
def test_models_are_named_for_the_missing_model_dialog(file: Path) -> None:
    loaders = [n for n in load(file)["nodes"] if n["type"] in FOLDERS]
    assert loaders
    for node in loaders:
        assert node["properties"]["models"]
        for model in node["properties"]["models"]:
            assert set(model) >= {"name", "url", "directory"}
            assert model["directory"] == FOLDERS[node["type"]]
            assert model["url"].split("?")[0].endswith(model["name"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("few_shot_encoder_unlearn", "load_erased_clip"),
        ("few_shot_encoder_unlearn", "erased_clip_animatediff"),
        ("image_to_video_unlearn", "erased_clip_wan"),
    ],
)
def test_the_second_loads_what_the_first_saves(
    info: dict[str, Any], first: str, second: str
) -> None:
    (save,) = [
        node
        for node in api_prompt(thumbnails.load(first), info).values()
        if node["class_type"] == "SaveErasedCLIP"
    ]
    (loaded,) = [
        node
        for node in api_prompt(native(thumbnails.load(second)), info).values()
        if node["class_type"] == "LoadErasedCLIP"
    ]
    prefix = save["inputs"]["filename_prefix"].removeprefix("loras/")
    assert loaded["inputs"]["erasure_name"] == f"{prefix}_00001_.safetensors"


def test_before_and_after_differ_in_what_was_erased_alone(info: dict[str, Any]) -> None:
    for name in (*thumbnails.NAMES, *video_thumbnails.WAN):
        if thumbnails.result(thumbnails.load(name)) is not None:
            continue  # it shows one picture, not pairs
        erased = "model" if name.endswith("unet_unlearn") else "clip"
        workflow = thumbnails.load(name)
        prompt = api_prompt(workflow, info)

        def chain(node: str, prompt: dict[str, Any] = prompt, erased: str = erased) -> Any:
            """All that decides a picture, with what makes the erased CLIP or MODEL left out."""
            inputs = {
                key: chain(value[0]) if isinstance(value, list) else value
                for key, value in prompt[node]["inputs"].items()
                if key != erased
            }
            return prompt[node]["class_type"], inputs

        pairs = thumbnails.comparisons(workflow)
        assert pairs
        for before, after in pairs.values():
            assert chain(str(before)) == chain(str(after))


def test_help_pages(info: dict[str, Any]) -> None:
    """Each node of the pack has a page that names all its inputs and outputs."""
    own = {
        name: node
        for name, node in info.items()
        if node["python_module"].startswith("custom_nodes.") and node["category"] == "unlearn"
    }
    assert {page.stem for page in DOCS.glob("*.md")} == set(own)
    for name, node in own.items():
        text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        for word in {re.sub(r"_\d$", "", key) for key in inputs} | set(node["output_name"]):
            assert f"**{word}" in text, f"{name}.md does not explain {word}"


@pytest.mark.slow
def test_few_shot_unlearns_what_it_says(server: Server, few_shot: dict[str, Any]) -> None:
    judge = Judge()
    shares = {}
    for what, nodes in thumbnails.comparisons(thumbnails.load("few_shot_encoder_unlearn")).items():
        word = what.split(",")[0]
        for node in nodes:
            pictures = server.images(few_shot, node)
            assert [picture.size for picture in pictures] == [(128, 128)] * 4
            pixels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
            answers = judge(torch.from_numpy(pixels).float() / 255)
            found = sum(answer["object"] == word for answer in answers) / len(answers)
            shares.setdefault(what, []).append(found)
    for what, (before, after) in shares.items():
        assert before >= 0.75, shares
        if what.startswith("mushroom"):
            assert after <= 0.25, shares
        else:
            assert after >= 0.75, shares


@pytest.mark.slow
def test_few_shot_says_and_keeps_what_it_did(server: Server, few_shot: dict[str, Any]) -> None:
    texts = " ".join(
        text for output in few_shot["outputs"].values() for text in output.get("text", ())
    )
    assert "mushroom" in texts
    assert list((server.output / "loras").glob("erased_clip_*.safetensors"))


@pytest.mark.slow
def test_load_draws_what_few_shot_drew(server: Server, few_shot: dict[str, Any]) -> None:
    """Through the saved file the same prompts and seeds give the same pictures, to rounding."""
    workflow = thumbnails.load("load_erased_clip")
    prompt = api_prompt(workflow, server.object_info())
    (node,) = [node for node in prompt.values() if node["class_type"] == "LoadErasedCLIP"]
    # Other tests may have saved under this name: what counts is the last file.
    saved = max(
        (server.output / "loras").glob("erased_clip_*.safetensors"),
        key=lambda file: file.stat().st_mtime,
    )
    node["inputs"]["erasure_name"] = saved.name
    history = server.run(prompt, workflow)
    first = thumbnails.comparisons(thumbnails.load("few_shot_encoder_unlearn"))

    def pixels(history: dict[str, Any], node: int) -> np.ndarray:
        return np.stack([np.asarray(p.convert("RGB"), float) for p in server.images(history, node)])

    for what, nodes in thumbnails.comparisons(workflow).items():
        before, after = (pixels(few_shot, node) for node in first[what])
        loaded_before, loaded_after = (pixels(history, node) for node in nodes)
        effect = np.abs(after - before).mean()
        assert effect > 0.2  # of 255
        assert np.abs(loaded_before - before).mean() < 1e-3 * effect
        assert np.abs(loaded_after - after).mean() < 0.02 * effect

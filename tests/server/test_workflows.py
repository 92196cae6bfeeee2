"""The shipped workflows fit the nodes they are made of, and run to their end on the real model."""

from __future__ import annotations

import json
import re
import urllib.parse
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from templates import native

from testbed.host.server import Server
from testbed.host.workflow import NOT_EXECUTED, api_prompt
from testbed.model import measure
from testbed.model.judge import Judge
from testbed.showcase import demo, templates, thumbnails, video_thumbnails

FILES = sorted(thumbnails.FOLDER.glob("*.json"))
DOCS = thumbnails.FOLDER.parent / "nodes" / "web" / "docs"
PACK = "concept-unlearn"
# Their ids differ between versions of ComfyUI.
MOVED = {"SaveLoRA", "SaveLoRANode", "LoadImageSetFromFolder", "LoadImageSetFromFolderNode"}
TITLE_BAR = 30  # pixels above a node's "pos"
FILE_NAMES = {
    "ckpt_name",
    "unet_name",
    "clip_name",
    "vae_name",
    "erasure_name",
    "image",
    "inception",
}
NARROWEST = 225  # pixels of a node in Nodes 2.0, whatever width the workflow says
SCREEN = (1920, 940)  # pixels of the canvas where the screen has 1920 x 1080
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
    """The history of the workflow for Few-Shot, run to its end."""
    workflow = thumbnails.load(templates.PICTURES)
    return server.run(api_prompt(workflow, server.object_info()), workflow)


def test_all_are_shipped() -> None:
    assert [file.stem for file in FILES] == sorted(thumbnails.NAMES + video_thumbnails.NAMES)


@pytest.mark.parametrize("name", templates.MADE)
def test_it_is_what_the_command_makes(name: str, info: dict[str, Any]) -> None:
    """python -m testbed.showcase.templates"""
    file = templates.FOLDER / f"{name}.json"
    assert file.read_text(encoding="utf-8") == templates.text(templates.made(name, info))


def test_they_are_in_order_the_simple_ones_first() -> None:
    """By name, which is what the template browser can sort by, and what its entries are called."""
    names = [file.stem for file in FILES]
    assert [int(name[:2]) for name in names] == [*range(1, len(names) + 1)]
    for name in names:
        assert re.fullmatch(r"\d\d [A-Z][A-Za-z ,()-]+", name), name
    assert names[0] == templates.SECONDS


def test_the_host_lists_them_and_hands_them_out(server: Server) -> None:
    """Names with spaces and brackets, and the pictures beside them."""
    (listed,) = json.loads(server.get("/workflow_templates")).values()
    assert sorted(listed) == [file.stem for file in FILES]
    (pack,) = json.loads(server.get("/workflow_templates"))
    for file in FILES:
        for one in (file, file.with_suffix(".jpg")):
            address = f"/api/workflow_templates/{pack}/{urllib.parse.quote(one.name)}"
            assert server.get(address) == one.read_bytes()


@pytest.mark.parametrize("name", templates.MADE)
def test_it_is_small(name: str) -> None:
    workflow = load(templates.FOLDER / f"{name}.json")
    most = 12 if name in (*templates.TRAINING, templates.COMBINE) else 16
    assert len(workflow["nodes"]) <= most


@pytest.mark.parametrize("name", templates.MADE)
def test_it_can_be_read_when_it_opens(name: str) -> None:
    """The browser fits all nodes into three quarters of the canvas."""
    boxes = [(*n["pos"], *n["size"]) for n in load(templates.FOLDER / f"{name}.json")["nodes"]]
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes) - TITLE_BAR
    right, bottom = max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
    zoom = 0.75 * min(SCREEN[0] / (right - left), SCREEN[1] / (bottom - top))
    assert zoom >= 0.6


@pytest.mark.parametrize("name", [*templates.MADE, thumbnails.IDENTIFY, thumbnails.PROBE])
def test_no_link_runs_over_a_note_or_a_title(name: str) -> None:
    """A link lies between the heights of its two ends, whose places in a node follow from their
    order. Notes and the titles of groups must be clear of it."""
    workflow = load(templates.FOLDER / f"{name}.json")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    kept_clear = [
        (g["bounding"][0], g["bounding"][1], g["bounding"][2], 40) for g in workflow["groups"]
    ]
    kept_clear += [(*n["pos"], *n["size"]) for n in nodes.values() if n["type"] == "MarkdownNote"]
    for link, origin, _, target, _, _ in workflow["links"]:
        one, two = nodes[origin], nodes[target]
        left, right = one["pos"][0] + one["size"][0], two["pos"][0]
        top = min(one["pos"][1], two["pos"][1])
        bottom = max(node["pos"][1] + node["size"][1] for node in (one, two))
        for x, y, width, height in kept_clear:
            apart = right <= x or x + width <= left or bottom <= y or y + height <= top
            assert apart, f"link {link} and what lies at {x}, {y}"


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
def test_no_node_is_narrower_than_nodes_2_draws_it(file: Path) -> None:
    """Otherwise it covers what stands beside it."""
    for node in load(file)["nodes"]:
        assert node["size"][0] >= NARROWEST, node["type"]


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
    # A title, and what the workflow is about in a sentence.
    assert re.match(r"## [A-Z].*\n\n\S.*", notes[0]["widgets_values"][0])
    assert notes[0]["title"] == "Read me first"
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
        (templates.PICTURES, templates.USE_CLIP),
        (templates.KEY_STEP, templates.USE_MODEL),
        (templates.PICTURES, video_thumbnails.ANIMATEDIFF),
        (video_thumbnails.TO_VIDEO, video_thumbnails.LOADED),
    ],
)
def test_the_second_loads_what_the_first_saves(
    info: dict[str, Any], first: str, second: str
) -> None:
    (save,) = [
        node
        for node in api_prompt(thumbnails.load(first), info).values()
        if node["class_type"].startswith("SaveErased")
    ]
    (loaded,) = [
        node
        for node in api_prompt(native(thumbnails.load(second)), info).values()
        if node["class_type"].startswith("LoadErased")
    ]
    prefix = save["inputs"]["filename_prefix"].removeprefix("loras/")
    assert loaded["inputs"]["erasure_name"] == f"{prefix}_00001_.safetensors"


def test_before_and_after_differ_in_what_was_erased_alone(info: dict[str, Any]) -> None:
    for name in video_thumbnails.WAN:
        workflow = thumbnails.load(name)
        prompt = api_prompt(workflow, info)

        def chain(node: str, prompt: dict[str, Any] = prompt) -> Any:
            """All that decides a picture, with what makes the erased CLIP left out."""
            inputs = {
                key: chain(value[0]) if isinstance(value, list) else value
                for key, value in prompt[node]["inputs"].items()
                if key != "clip"
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
        if node["python_module"].startswith("custom_nodes.")
        and node["category"].startswith("unlearn/")
    }
    assert {page.stem for page in DOCS.glob("*.md")} == set(own)
    for name, node in own.items():
        text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        for word in {re.sub(r"_\d$", "", key) for key in inputs} | set(node["output_name"]):
            assert f"**{word}" in text, f"{name}.md does not explain {word}"


def newest(server: Server) -> str:
    """Other tests may have saved under this name: what counts is the last file."""
    return demo.newest(server.output, "erased_clip_*.safetensors").name


@pytest.mark.slow
def test_few_shot_unlearns_what_it_says(server: Server, few_shot: dict[str, Any]) -> None:
    judge = Judge()
    for what, style in (("mushroom", "noto"), ("pineapple", "glossy")):
        prompt = measure.Prompt(f"a photo of a {what} in {style} style", what, style)
        shares = []
        for file in (None, newest(server)):
            history = server.run(demo.drawing_prompt([prompt] * 4, file, 7))
            answers = judge(demo.pictures(server, history, 4))
            shares.append(sum(answer["object"] == what for answer in answers) / 4)
        before, after = shares
        assert before >= 0.75, (what, shares)
        assert after <= 0.25 if what == "mushroom" else after >= 0.75, (what, shares)


@pytest.mark.slow
def test_few_shot_says_and_keeps_what_it_did(server: Server, few_shot: dict[str, Any]) -> None:
    texts = " ".join(
        text for output in few_shot["outputs"].values() for text in output.get("text", ())
    )
    assert "mushroom" in texts
    assert list((server.output / "loras").glob("erased_clip_*.safetensors"))


@pytest.mark.slow
def test_load_draws_what_few_shot_drew(server: Server, few_shot: dict[str, Any]) -> None:
    """Through the saved file Compare Erasure draws the same pictures, to rounding."""
    workflow = thumbnails.load(templates.USE_CLIP)
    prompt = api_prompt(workflow, server.object_info())
    (node,) = [node for node in prompt.values() if node["class_type"] == "LoadErasedCLIP"]
    node["inputs"]["erasure_name"] = newest(server)
    history = server.run(prompt, workflow)

    def sides(history: dict[str, Any], name: str) -> list[np.ndarray]:
        """The pictures on the left and on the right of Compare Erasure's, without its figures."""
        compared = thumbnails.result(thumbnails.load(name))
        (sheet,) = (np.asarray(p.convert("RGB"), float) for p in server.images(history, compared))
        half = sheet.shape[1] // 2
        return [sheet[40:360, :half], sheet[40:360, half:]]

    before, after = sides(few_shot, templates.PICTURES)
    loaded_before, loaded_after = sides(history, templates.USE_CLIP)
    effect = np.abs(after - before).mean()
    assert effect > 0.2  # of 255
    assert np.abs(loaded_before - before).mean() < 1e-3 * effect
    assert np.abs(loaded_after - after).mean() < 0.02 * effect

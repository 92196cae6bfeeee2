"""Erases a concept from beginning to end: python dev.py demo

Starts the real ComfyUI server and queues the shipped workflow as a browser would. This unlearns a
concept from IconCanvas. Then it draws the concept and its neighbours before and after, for you and
for the judge.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

import testbed

from ..host import process as host
from ..host.server import Progress, Server
from ..host.workflow import api_prompt
from ..model import measure
from ..model.judge import Judge
from . import templates

CONCEPT = "mushroom"
WORKFLOW = templates.FOLDER / f"{templates.PICTURES}.json"
FOLDER = testbed.ROOT / "output" / "demo"
CHECKPOINT = "iconcanvas.safetensors"
SHOWN = 7  # pictures a row
LEFT = 140  # pixels for the title of a row


def main() -> None:
    started = time.monotonic()
    workflow = json.loads(WORKFLOW.read_text("utf-8"))
    seed = random.randrange(10**6)  # other pictures every time, so nothing can be prepared
    prompts = measure.prompts_for(CONCEPT)
    print(f"Starting ComfyUI; what it writes goes to {FOLDER}")
    with Server(FOLDER, input_folder=host.path() / "input") as server:
        print(f"Unlearning {CONCEPT!r} with the workflow {WORKFLOW.name}, at {server.address}")
        prompt = api_prompt(workflow, server.object_info())
        for node in prompt.values():  # another seed trains again, instead of reading a file
            if node["class_type"] == "FewShotEncoderUnlearn":
                node["inputs"]["seed"] = seed
        with Bar("training") as bar:
            history = server.run(prompt, workflow, on_progress=bar)
        file = newest(server.output, "erased_clip*.safetensors")
        erased = file.relative_to(server.output / "loras").as_posix()
        drawn = []
        for title, name in (("drawing before", None), ("drawing after", erased)):
            with Bar(title, len(prompts)) as bar:
                graph = drawing_prompt(prompts, name, seed)
                drawn.append(pictures(server, server.run(graph, on_progress=bar), len(prompts)))
    before, after = drawn
    scores = measure.score(CONCEPT, prompts, before, after, Judge())
    picture = FOLDER / "before_after.png"
    before_after(prompts, before, after).save(picture)
    print(summary_of(history))
    print(
        f"\nThe judge, a separate classifier, on {len(prompts)} prompts:\n"
        f"  UA  {scores['ua']:.0%}  of the {CONCEPT} prompts show no {CONCEPT} any more\n"
        f"  IRA {scores['ira']:.0%}  of the other objects are still drawn\n"
        f"  CRA {scores['cra']:.0%}  of the styles and characters are still drawn\n"
        f"  style kept in {scores['style_kept']:.0%} of the {CONCEPT} prompts\n\n"
        f"picture: {picture}\nerasure: {file}\n"
        f"{time.monotonic() - started:.0f} s in all"
    )


class Bar:
    """A progress bar on the terminal, of steps or of pictures, from the events of the server."""

    def __init__(self, title: str, pictures: int | None = None) -> None:
        self.pictures = pictures
        self.bar = tqdm(
            total=pictures,
            desc=title,
            bar_format="{desc}: {percentage:3.0f}%|{bar:30}| {n_fmt}/{total_fmt} {postfix}",
        )

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def __call__(self, event: Progress) -> None:
        if self.pictures:
            if event.node_type == "VAEDecode" and not event.total:
                self.bar.update()
        elif event.node_type == "FewShotEncoderUnlearn" and event.total:
            self.bar.total = int(event.total)
            self.bar.n = int(event.value)
            self.bar.refresh()
        elif event.total == 0 and event.node_type:
            self.bar.set_postfix_str(event.node_type)


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.rglob(pattern), key=lambda file: file.stat().st_mtime)


def summary_of(history: dict) -> str:
    """The text that Few-Shot Encoder Unlearn showed."""
    texts = [text for output in history["outputs"].values() for text in output.get("text", ())]
    return "\n" + next((t for t in texts if "was trained on" in t), "")


def drawing_prompt(prompts: list[measure.Prompt], erased: str | None, seed: int) -> dict:
    """A prompt in the server's format: one picture for each prompt, each with its own seed."""
    graph: dict[str, dict] = {
        "checkpoint": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}},
        "latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 128, "height": 128, "batch_size": 1},
        },
    }
    clip = ["checkpoint", 1]
    if erased:
        graph["erased"] = {
            "class_type": "LoadErasedCLIP",
            "inputs": {"clip": clip, "erasure_name": erased, "strength": 1.0},
        }
        clip = ["erased", 0]
    graph["empty"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}}
    for i, prompt in enumerate(prompts):
        graph[f"text{i}"] = {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": clip, "text": prompt.text},
        }
        graph[f"sample{i}"] = {
            "class_type": "KSampler",
            "inputs": {
                "model": ["checkpoint", 0],
                "positive": [f"text{i}", 0],
                "negative": ["empty", 0],
                "latent_image": ["latent", 0],
                "seed": seed + i,
                "steps": measure.STEPS,
                "cfg": measure.GUIDANCE,
                "sampler_name": "dpmpp_2m",
                "scheduler": "karras",
                "denoise": 1.0,
            },
        }
        graph[f"decode{i}"] = {
            "class_type": "VAEDecode",
            "inputs": {"samples": [f"sample{i}", 0], "vae": ["checkpoint", 2]},
        }
        graph[f"show{i}"] = {"class_type": "PreviewImage", "inputs": {"images": [f"decode{i}", 0]}}
    return graph


def pictures(server: Server, history: dict, count: int) -> torch.Tensor:
    """The pictures of `drawing_prompt`, (count, 128, 128, 3) in 0..1, in the prompts' order."""
    drawn = [server.images(history, f"show{i}")[0].convert("RGB") for i in range(count)]
    return torch.from_numpy(np.stack([np.asarray(d) for d in drawn])).float() / 255


def before_after(
    prompts: list[measure.Prompt], before: torch.Tensor, after: torch.Tensor
) -> Image.Image:
    """Rows of before above after: the concept's own prompts, its own kind, the other kinds."""
    size, margin, heading = before.shape[1], 8, 18
    rows = [("the concept", "own"), ("other objects", "in"), ("styles and characters", "cross")]
    height = heading + len(rows) * (2 * (size + heading) + margin)
    sheet = Image.new("RGB", (LEFT + SHOWN * (size + 4), height), "white")
    pen = ImageDraw.Draw(sheet)
    y = 4
    for title, kind in rows:
        chosen = [i for i, p in enumerate(prompts) if p.measure == kind]
        # Spread evenly over all prompts of the row.
        chosen = [chosen[round(j * (len(chosen) - 1) / (SHOWN - 1))] for j in range(SHOWN)]
        pen.text((4, y), title, fill="black")
        for column, i in enumerate(chosen):
            x = LEFT + column * (size + 4)
            p = prompts[i]
            label = p.character or f"{p.object}, {p.style}"
            pen.text((x, y), label, fill=(90, 90, 90))
            for step, images in enumerate((before, after)):
                pixels = Image.fromarray((images[i].numpy() * 255).round().astype(np.uint8))
                sheet.paste(pixels, (x, y + heading + step * (size + 4)))
        pen.text((4, y + heading + size // 2), "before", fill="black")
        pen.text((4, y + heading + size + size // 2), "after", fill="black")
        y += 2 * (size + heading) + margin
    return sheet


if __name__ == "__main__":
    main()

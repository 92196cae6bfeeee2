"""Parts of prompts for a real server's queue, and readers of their results."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from testbed.host.server import Progress, Server


def node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def loader(checkpoint: str = "iconcanvas.safetensors") -> dict[str, Any]:
    """A node that loads the test model: ["base", 0..2] are MODEL, CLIP and VAE."""
    return {"base": node("CheckpointLoaderSimple", ckpt_name=checkpoint)}


def latents(
    name: str,
    model: tuple[str, int] = ("base", 0),
    clip: tuple[str, int] = ("base", 1),
    prompt: str = "a photo of a mushroom, flat style",
) -> dict[str, Any]:
    """Nodes that draw a prompt, small and in a few steps, and save its latents.

    Latents, because pictures would hide a difference in the last bit.
    """
    return {
        f"{name}+": node("CLIPTextEncode", clip=list(clip), text=prompt),
        f"{name}-": node("CLIPTextEncode", clip=list(clip), text=""),
        f"{name}.latent": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        f"{name}.sample": node(
            "KSampler",
            model=list(model),
            positive=[f"{name}+", 0],
            negative=[f"{name}-", 0],
            latent_image=[f"{name}.latent", 0],
            seed=1,
            steps=4,
            cfg=5.0,
            sampler_name="dpmpp_2m",
            scheduler="karras",
            denoise=1.0,
        ),
        name: node("SaveLatent", samples=[f"{name}.sample", 0], filename_prefix=f"latents/{name}"),
    }


def drawn(server: Server, history: dict[str, Any], name: str) -> torch.Tensor:
    """The latents that the nodes of `latents` drew."""
    (saved,) = history["outputs"][name]["latents"]
    return load_file(server.output / saved["subfolder"] / saved["filename"])["latent_tensor"]


def text(history: dict[str, Any], name: str) -> str:
    """The text that a node shows."""
    return "".join(history["outputs"][name]["text"])


def steps_of(events: Iterable[Progress], name: str) -> list[int]:
    """The training steps that a node has reported."""
    told = (re.search(r"step (\d+) of at most", e.text or "") for e in events if e.node == name)
    return [int(found[1]) for found in told if found]


def cached(history: dict[str, Any]) -> set[str]:
    """The nodes that the server did not run again."""
    messages = dict(history["status"]["messages"])
    return set(messages.get("execution_cached", {}).get("nodes", ()))


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().mean().item()


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}

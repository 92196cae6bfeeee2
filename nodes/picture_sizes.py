"""Whether another node brought pictures of several sizes to one, which it does without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import folder_paths
from PIL import Image

# ComfyUI's nodes that scale each picture to the first one's size, and cut off what is left over.
SCALING = {"ImageBatch", "BatchImagesNode"}
LOADING = {"LoadImage", "LoadImageMask", "LoadImageOutput"}


def scaled(prompt: Mapping[str, Any] | None, node_id: str | None, socket: str) -> str:
    """A warning if the pictures that a prompt feeds to an input had several sizes, otherwise "".

    Only pictures that come straight from a loading node are known.
    """
    link = (prompt or {}).get(str(node_id), {}).get("inputs", {}).get(socket)
    sizes = list(dict.fromkeys(loaded_sizes(prompt or {}, link)))
    if len(sizes) < 2:
        return ""
    shown = ", ".join(f"{width} x {height}" for width, height in sizes[:4])
    return (
        f"Warning: the pictures have {len(sizes)} sizes ({shown}), and the node that puts them "
        f"together scaled and cut all to {sizes[0][0]} x {sizes[0][1]}. Crop them to one size "
        "yourself, so that each still shows the concept."
    )


def loaded_sizes(prompt: Mapping[str, Any], link: Any) -> Iterator[tuple[int, int]]:
    """Width and height of each picture that is loaded for a link, in their order."""
    if not isinstance(link, list) or link[0] not in prompt:
        return
    node = prompt[link[0]]
    if node["class_type"] in SCALING:
        for one in node["inputs"].values():
            yield from loaded_sizes(prompt, one)
    elif node["class_type"] in LOADING and isinstance(node["inputs"].get("image"), str):
        try:
            with Image.open(folder_paths.get_annotated_filepath(node["inputs"]["image"])) as image:
                yield image.size
        except (OSError, ValueError):
            return  # what cannot be read here, the loading node has said

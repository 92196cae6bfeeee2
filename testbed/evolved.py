"""AnimateDiff-Evolved beside this pack in the real host, on IconCanvas.

It is on no package index: CONCEPT_UNLEARN_ANIMATEDIFF names the folder it lies in.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from dev import host_command

from . import host
from .server import Server

VARIABLE = "CONCEPT_UNLEARN_ANIMATEDIFF"
EXTENSION = host.ROOT / "testbed" / "animatediff_evolved"
MOTION = "iconcanvas_motion.safetensors"  # what the workflow calls IconCanvas's motion module


def missing() -> str:
    """Why it is not at hand, in a sentence; empty where it is."""
    if (Path(os.environ.get(VARIABLE) or "nowhere") / "animatediff").is_dir():
        return ""
    return f"{VARIABLE} does not name the folder of AnimateDiff-Evolved"


def load(nodes: ModuleType) -> ModuleType:
    """Its package in this process's ComfyUI, whose module `nodes` that is.

    Raises RuntimeError when the host cannot load it.
    """
    name = str(EXTENSION).replace(".", "_x_")
    if name not in sys.modules and not asyncio.run(nodes.load_custom_node(str(EXTENSION))):
        raise RuntimeError("ComfyUI cannot load AnimateDiff-Evolved; its log says why.")
    return sys.modules[name].itself


@contextmanager
def server(folder: Path, motion: Path, input_folder: Path | None = None) -> Iterator[Server]:
    """A real server with the pack, IconCanvas, and AnimateDiff-Evolved with a motion module."""
    extra = folder / "extra"
    shutil.copytree(EXTENSION, extra / "custom_nodes" / EXTENSION.name)
    (extra / "motion").mkdir()
    shutil.copy(motion, extra / "motion" / MOTION)
    paths = folder / "extra.yaml"
    paths.write_text(
        f"extra:\n  base_path: {extra.as_posix()}\n  custom_nodes: custom_nodes\n"
        "  animatediff_models: motion\n",
        encoding="utf-8",
    )
    option = "--whitelist-custom-nodes"
    own = host_command(host.path(), 0)
    names = own[own.index(option) + 1 :]
    args = ("--extra-model-paths-config", str(paths), option, *names, EXTENSION.name)
    with Server(folder, input_folder=input_folder, args=args) as running:
        yield running

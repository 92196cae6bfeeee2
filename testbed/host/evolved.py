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

import testbed

from .server import Server, extended

VARIABLE = "CONCEPT_UNLEARN_ANIMATEDIFF"
EXTENSION = testbed.ROOT / "testbed" / "animatediff_evolved"
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
    models = folder / "motion"
    models.mkdir()
    shutil.copy(motion, models / MOTION)
    args = extended(folder, EXTENSION, animatediff_models=models)
    with Server(folder, input_folder=input_folder, args=args) as running:
        yield running

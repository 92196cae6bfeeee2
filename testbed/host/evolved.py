"""AnimateDiff-Evolved together with this pack in the real host, on IconCanvas.

No package index has it. The environment variable CONCEPT_UNLEARN_ANIMATEDIFF names its folder.
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
    """A sentence that says why AnimateDiff-Evolved is missing; empty if it is there."""
    if (Path(os.environ.get(VARIABLE) or "nowhere") / "animatediff").is_dir():
        return ""
    return f"{VARIABLE} does not name the folder of AnimateDiff-Evolved"


def load(nodes: ModuleType) -> ModuleType:
    """AnimateDiff-Evolved's package, loaded into this process's ComfyUI.

    nodes: ComfyUI's module of that name. Raises RuntimeError if the host cannot load the package.
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

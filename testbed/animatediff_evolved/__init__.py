"""A host extension: AnimateDiff-Evolved, changed so that it takes IconCanvas's motion module.

No package index has it, so it is loaded from the folder that CONCEPT_UNLEARN_ANIMATEDIFF names.
One thing is changed: it assumes the widths of Stable Diffusion 1.5's levels, and IconCanvas's are
narrower. Use this for IconCanvas only; for Stable Diffusion install the pack itself.
"""

import importlib.util
import os
import sys
from pathlib import Path

VARIABLE = "CONCEPT_UNLEARN_ANIMATEDIFF"
WIDTHS = (64, 128, 128, 64)  # of IconCanvas's levels, from the finest to the coarsest
NAME = f"{__name__}_itself"

folder = Path(os.environ.get(VARIABLE, ""))
if not (folder / "animatediff").is_dir():
    raise FileNotFoundError(f"{VARIABLE} must name the folder of AnimateDiff-Evolved, not {folder}")

spec = importlib.util.spec_from_file_location(NAME, folder / "__init__.py")
itself = sys.modules[NAME] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(itself)

layers = sys.modules[f"{NAME}.animatediff.motion_module_ad"]
wide = layers.MotionModule


def narrow(_: int, block_type: str, block_idx: int = 0, **options):
    """A MotionModule with the width of IconCanvas's level."""
    widths = WIDTHS if block_type == layers.BlockType.DOWN else WIDTHS[::-1]
    return wide(widths[block_idx], block_type=block_type, block_idx=block_idx, **options)


layers.MotionModule = narrow

NODE_CLASS_MAPPINGS = itself.NODE_CLASS_MAPPINGS
NODE_DISPLAY_NAME_MAPPINGS = itself.NODE_DISPLAY_NAME_MAPPINGS
WEB_DIRECTORY = str(folder / "web")

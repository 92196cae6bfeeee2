"""The real ComfyUI inside this process, from the place where `dev.py` put it."""

import importlib
import os
import sys
from pathlib import Path

from .. import ROOT


def path() -> Path:
    """The ComfyUI tree: COMFYUI_PATH if set, otherwise the one that `dev.py` unpacked.

    Raises FileNotFoundError with one sentence if there is none.
    """
    tree = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")
    if not (tree / "main.py").is_file():
        raise FileNotFoundError(f"No ComfyUI in {tree}: run `python dev.py setup` first.")
    return tree.resolve()


def start(*flags: str) -> None:
    """Make ComfyUI's modules importable, with its options taken from `flags`.

    The order matters: the host reads its options when `comfy.cli_args` is first imported, and its
    package `utils` must be imported before any other of that name.
    """
    if "comfy.cli_args" in sys.modules:
        return
    import torch

    tree = path()
    sys.path.insert(0, str(tree))
    # Versions up to 0.24 import it so late that another package `utils` may come first.
    importlib.import_module("utils.install_util")
    if not torch.cuda.is_available():
        flags = ("--cpu", *flags)
    arguments, sys.argv = sys.argv, [str(tree / "main.py"), *flags]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
    finally:
        sys.argv = arguments

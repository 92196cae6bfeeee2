"""The pack and IconCanvas inside this process's ComfyUI, loaded by path as the host does it."""

import asyncio
import sys
from pathlib import Path
from types import ModuleType

import testbed

from ..host import process as host

_loaded: ModuleType | None = None


def load(output: Path | None = None) -> ModuleType:
    """Start ComfyUI in this process with IconCanvas and the pack, and return the pack's package.

    output: replaces the host's output folder. Raises RuntimeError if the host cannot load them.
    """
    global _loaded
    if _loaded is None:
        host.start()
        import folder_paths
        from server import PromptServer

        import nodes

        if output:
            folder_paths.set_output_directory(str(output))
        PromptServer(asyncio.new_event_loop())  # the nodes report to it; it does not run
        for folder in (testbed.ROOT / "testbed" / "iconcanvas", testbed.ROOT):
            if not asyncio.run(nodes.load_custom_node(str(folder))):
                raise RuntimeError(f"ComfyUI cannot load {folder}; its log says why.")
        _loaded = sys.modules[str(testbed.ROOT).replace(".", "_x_")]
    return _loaded


def checkpoint(file: Path | None = None):
    """(MODEL, CLIP, VAE) of a checkpoint, by the host's loader. Default: IconCanvas."""
    import comfy.sd
    import torch

    from .checkpoint import WEIGHTS

    with torch.inference_mode():  # as the host's loader nodes run
        model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(file or WEIGHTS))
    return model, clip, vae

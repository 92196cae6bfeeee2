"""Keeps denoiser and text encoder on the device, with free memory for the computation."""

from __future__ import annotations

from collections.abc import Iterable

import comfy.model_management as management


class Residency:
    """Loads the models, and loads them again if the host has unloaded one."""

    def __init__(self, patchers: Iterable, device) -> None:
        self.patchers, self.device = tuple(patchers), device
        self.room = 0
        """Bytes that stay free beside the models."""

    def load(self) -> None:
        """Load as much of the models as fits beside `room`."""
        management.load_models_gpu(list(self.patchers), memory_required=self.room)
        if self.room:  # the host may have filled a part of it with weights
            management.free_memory(self.room, self.device)

    def ready(self) -> None:
        """Load again what the host has unloaded.

        The host may have unloaded a model to load the autoencoder, or the text encoder.
        """
        if not self.is_loaded():
            self.load()

    def make_room(self) -> None:
        """Free `room` again. The host fills it with weights whenever it draws."""
        if self.room:
            self.load()

    def is_loaded(self) -> bool:
        return all(p.model.current_weight_patches_uuid == p.patches_uuid for p in self.patchers)

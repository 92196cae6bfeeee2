"""Network and text encoder on the device, beside room for what is computed with them."""

from __future__ import annotations

import comfy.model_management as management


class Residency:
    """Loads both models, and loads them again where the host has put something else there."""

    def __init__(self, patcher, encoder_patcher, device) -> None:
        self.patchers, self.device = (patcher, encoder_patcher), device
        self.room = 0
        """Bytes that stay free beside the models."""

    def load(self) -> None:
        """Put as much of both models on the device as fits beside `room`."""
        management.load_models_gpu(list(self.patchers), memory_required=self.room)
        if self.room:  # The host fills a part of what is free with weights in any case.
            management.free_memory(self.room, self.device)

    def ready(self) -> None:
        """Load what the host has unloaded since.

        The autoencoder may have taken the network's place, or the place of the text encoder, which
        the host loads by itself.
        """
        if not self.is_loaded():
            self.load()

    def make_room(self) -> None:
        """Make `room` again: whenever the host draws, it fills it with weights."""
        if self.room:
            self.load()

    def is_loaded(self) -> bool:
        return all(p.model.current_weight_patches_uuid == p.patches_uuid for p in self.patchers)

"""Pictures as a method takes them: checked once, where they come in."""

from __future__ import annotations

import torch

SMALLEST = 8  # pixels of a picture's side: one place in the latents of most models


def check_images(images: torch.Tensor | None) -> None:
    """Raises ValueError with one sentence unless images are (N, H, W, 3) in 0..1 and finite."""
    if images is None:
        return
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or len(images) == 0:
        raise ValueError(
            f"Images must be a batch of shape (N, height, width, 3), but this one has shape "
            f"{tuple(images.shape)}; connect the output of a Load Image node."
        )
    if not torch.isfinite(images).all():
        bad = [i + 1 for i in range(len(images)) if not torch.isfinite(images[i]).all()]
        raise ValueError(f"Image {bad[0]} holds NaN or infinite values; remove or redraw it.")
    if images.min() < -0.5 or images.max() > 1.5:
        raise ValueError(
            f"Image values must lie between 0 and 1, but these go from {images.min():.3g} to "
            f"{images.max():.3g}; divide 8-bit values by 255."
        )

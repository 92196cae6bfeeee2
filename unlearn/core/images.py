"""The check of a user's images, made once before a method gets them."""

from __future__ import annotations

import torch

SMALLEST = 8  # pixels of an image's side: one latent pixel of most models


def check_images(images: torch.Tensor | None) -> None:
    """Raises ValueError unless images are (N, H, W, 3 or 4), finite and about in 0..1."""
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

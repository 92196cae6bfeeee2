"""What is done to drawings before the judge learns from them: nothing here needs ComfyUI.

To pictures: changes that keep what they show, and changes that leave nothing of it. To latents: the
same two, as a diffusion model makes them.
"""

import numpy as np
import torch
import torch.nn.functional as F

from .judge import SIZE


def augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (N, 3, H, W), mirrored, turned, scaled, shifted, tinted, blurred and with noise, at
    SIZE.

    Tints and blur are mild: colours and outlines tell a style.
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.3, 0.3), uniform(0.85, 1.45)
    mirror = (uniform(0, 1) < 0.5) * 2 - 1
    cos, sin = angle.cos() * scale, angle.sin() * scale
    theta = torch.stack(
        [
            torch.stack([cos * mirror, -sin * mirror, uniform(-0.15, 0.15)], 1),
            torch.stack([sin, cos, uniform(-0.15, 0.15)], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [n, 3, SIZE, SIZE], align_corners=False)
    # White outside: sampled as the negative, whose zero padding is white.
    x = 1 - F.grid_sample(1 - images, grid, mode="bilinear", align_corners=False)
    x = x * uniform(0.9, 1.1, 1, 1, 1) + uniform(-0.03, 0.03, 3, 1, 1)
    # Blurred by scaling down and up, since generated pictures are soft.
    small = int(torch.randint(SIZE // 2, SIZE + 1, (1,), generator=generator))
    soft = F.interpolate(
        F.interpolate(x, (small, small), mode="area"), (SIZE, SIZE), mode="bilinear"
    )
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.5, soft, x)
    x = x + uniform(0, 0.05, 1, 1, 1) * torch.randn(x.shape, generator=generator)
    return x.clamp(0, 1)


def smeared(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pictures (N, 3, H, W) that show nothing: drawings mixed, torn, bent or blurred beyond
    recognition.

    They are square, and N is at least 4.
    """
    n, _, *size = images.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    # Three others mixed into each, so that none has much more than a quarter of the weight.
    weights = 0.3 * torch.rand(4, n, 1, 1, 1, generator=generator) + 0.7
    order = torch.randperm(n, generator=generator)
    others = torch.stack([images[order.roll(k)] for k in range(4)])
    mixed = (weights * others).sum(0) / weights.sum(0)
    ways = torch.randint(4, (n, 1, 1, 1), generator=generator)
    x = torch.where(ways == 0, images, torch.where(ways == 1, torn(others, generator), mixed))
    # Bent: each place comes from up to a third of the picture away.
    strength = uniform(0.25, 0.45, 1, 1, 1).where(ways != 1, 0.08)
    x = 1 - bent(1 - x, strength, generator)
    # Blurred, one in four until only spots are left.
    small = int(torch.randint(5, 9, (1,), generator=generator))
    spots = F.interpolate(F.interpolate(x, (small, small), mode="area"), size, mode="bicubic")
    x = torch.where(ways == 3, spots, x)
    # Stronger or weaker colours than the mean of several drawings has.
    return (x.mean((2, 3), keepdim=True).lerp(x, uniform(0.8, 2.0, 1, 1, 1))).clamp(0, 1)


def disturbed(z: torch.Tensor, blank: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Latents (N, 4, H, W), disturbed as sampling in 8 to 25 steps does. The thing stays clear.

    blank: latents (4, H, W) of a white picture. They differ at its edges, where things must not be
    moved to or from, so all is done to what a picture has beyond them.
    """
    n, _, height, width = z.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(n, 1, 1, 1, generator=generator) * (high - low) + low

    def noise(channels: int, cells: int) -> torch.Tensor:
        field = torch.randn(n, channels, cells, cells, generator=generator)
        return F.interpolate(field, (height, width), mode="bicubic")

    harm = uniform(0, 1)  # few steps do all kinds of harm at once
    x = bent(z - blank, uniform(0, 0.05) * harm, generator)
    # A part of the picture that is still empty, with a soft edge.
    lost = (4 * (noise(1, 5) - 1.2)).sigmoid() * uniform(0, 0.9) * (uniform(0, 1) < 0.35)
    x = x * (1 - lost) * (1 + 0.35 * harm * uniform(-0.2, 1))
    x = x + 0.45 * harm * uniform(0.3, 1) * torch.randn(z.shape, generator=generator)
    return blank + x + 0.35 * harm * uniform(0, 1) * noise(4, 6)


def scrambled(z: torch.Tensor, blank: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Latents (N, 4, 16, 16) of drawings to latents of nothing: torn to pieces and mixed, averaged,
    or bent beyond recognition.

    blank: as for `disturbed`. N is at least 4.
    """
    n, z = len(z), z - blank
    order = torch.randperm(n, generator=generator)
    others = torch.stack([z[order.roll(k)] for k in range(4)])
    pieces = torn(others, generator)
    ways = torch.randint(3, (n, 1, 1, 1), generator=generator)
    x = torch.where(ways == 0, pieces, torch.where(ways == 1, 1.6 * others.mean(0), z))
    strength = torch.rand(n, 1, 1, 1, generator=generator) * 0.2 + 0.25
    return blank + bent(x, strength.where(ways > 0, 0.05), generator)


def bent(x: torch.Tensor, strength: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Maps (N, channels, H, W) in which each place comes from another. Outside of the maps is 0.

    strength: how far away, (N, 1, 1, 1), in halves of a map.
    """
    n, _, height, width = x.shape
    field = torch.randn(n, 2, 5, 5, generator=generator)
    field = F.interpolate(field, (height, width), mode="bicubic").movedim(1, -1)
    grid = F.affine_grid(torch.eye(2, 3).expand(n, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid + strength * field, align_corners=False)


def torn(others: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """From square maps (4, N, channels, S, S) to (N, channels, S, S): each of sixteen pieces comes
    from a random place of one of the four."""
    side = others.shape[-1]
    pieces = F.unfold(others.flatten(0, 1), side // 4, stride=side // 4)
    pieces = pieces.unflatten(0, others.shape[:2]).permute(0, 3, 1, 2).flatten(0, 1)
    n = pieces.shape[1]  # they are (4 * 16, N, numbers of a piece)
    places = torch.rand(len(pieces), n, generator=generator).argsort(0)[:16]
    chosen = pieces[places, torch.arange(n)].permute(1, 2, 0)
    return F.fold(chosen, (side, side), side // 4, stride=side // 4)


def to_images(array: np.ndarray) -> torch.Tensor:
    """From uint8 (N, H, W, 3) to float (N, 3, H, W) in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2).float() / 255

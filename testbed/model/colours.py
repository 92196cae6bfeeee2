"""The colours of a drawing, as words that are true of it."""

import numpy as np
from PIL import Image

SHARE = 0.45  # of the drawn surface that a colour must cover to be named
# From an angle of the hue, in degrees, up to which a word holds.
HUES = (
    (16, "red"),
    (42, "orange"),
    (68, "yellow"),
    (165, "green"),
    (255, "blue"),
    (300, "purple"),
    (345, "pink"),
    (360, "red"),
)
COLOURS = ("black", "grey", "white", "brown", *dict.fromkeys(word for _, word in HUES))


def colours(picture: np.ndarray) -> tuple[str, ...]:
    """The colours that cover at least SHARE of what is drawn on white.

    picture: uint8 (H, W, 3).
    """
    hsv = np.asarray(Image.fromarray(picture).convert("HSV")).reshape(-1, 3).astype(int)
    hue, saturation, value = hsv[:, 0] * 360 / 255, hsv[:, 1], hsv[:, 2]
    drawn = (value <= 242) | (saturation >= 20)
    grey, dark = saturation < 50, value < 60
    bounds = [bound for bound, _ in HUES]
    words = np.array([word for _, word in HUES])[
        np.searchsorted(bounds, hue, side="left").clip(max=len(HUES) - 1)
    ]
    warm = (hue < 45) | (hue > 345)
    words = np.select(
        [
            dark | (grey & (value < 70)),
            grey & (value < 215),
            grey,
            warm & (value < 170),
            ((hue < 16) | (hue > 330)) & (saturation < 120) & (value > 200),
        ],
        ["black", "grey", "white", "brown", "pink"],
        words,
    )
    found, counts = np.unique(words[drawn], return_counts=True)
    return tuple(str(word) for word, n in zip(found, counts) if n >= SHARE * drawn.sum())

"""Erasures that an earlier version saved (commit 907276f) draw what that version draws with them.

They were trained on IconCanvas's first weights, and pictures.png was drawn by that version with the
weights of today.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import testbed.model.pack

SAVED = Path(__file__).resolve().parents[1] / "data" / "saved_by_0.1.0"
# The rows of pictures.png, drawn by that version, and the file that was loaded for each.
ROWS = ("original", "few_shot", "key_step", "domain_correction", "full_delta")
PROMPTS = ["a photo of a fox", "a painting of a cat, ink style"]
SIDE = 128


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """(rows, prompts, height, width, 3) in 0..255."""
    sheet = torch.from_numpy(np.array(Image.open(SAVED / "pictures.png")))
    rows = sheet.view(len(ROWS), SIDE, len(PROMPTS), SIDE, 3).transpose(1, 2)
    return rows.float()


@pytest.mark.parametrize("row", range(len(ROWS)), ids=ROWS)
def test_an_erasure_draws_what_it_drew(
    pack: ModuleType, pictures: torch.Tensor, node_body: None, row: int
) -> None:
    model, clip, vae = testbed.model.pack.checkpoint()
    if row:
        erasure = pack.unlearn.Erasure.load(SAVED / f"{ROWS[row]}.safetensors")
        warnings = pack.nodes.backend.apply.other_base(model, clip, erasure)
        assert "weights differ" in warnings, "its record names the base that it was trained on"
        model, clip = pack.nodes.backend.apply.erased(model, clip, erasure)
    drawing = pack.nodes.backend.model.ComfyModel(model, clip, vae, size=(SIDE, SIDE))
    with drawing.training():
        found = drawing.decode_latents(drawing.sample(PROMPTS, 16, 10, 5.0)) * 255
    # Other machines round otherwise; another picture is 5 to 40 away.
    assert (found - pictures[row]).abs().mean() < 1.5


def test_the_erasures_differ_from_the_original(pictures: torch.Tensor) -> None:
    """Otherwise the test above would pass without them."""
    for row in range(1, len(ROWS)):
        assert (pictures[row] - pictures[0]).abs().mean() > 2.5

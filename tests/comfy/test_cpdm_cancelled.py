"""Measure Copyright (CPDM), cancelled while it works."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import small_inception
import torch
from small_erasures import run

FILE = "fid.pth"


def test_it_stops_at_the_next_picture(
    pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management
    import folder_paths
    from tiny_clip_vision import TinyCLIPVision

    cpdm, told = pack.nodes.cpdm, []
    small_inception.write(tmp_path / FILE)
    # What the host remembers of this folder must not outlive it.
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, cpdm.FOLDER, ([str(tmp_path)], {".pth"})
    )

    def cancel(node_id: str | None, text: str) -> None:
        """As the user who sees that the first of three pictures is done."""
        told.append(text)
        management.interrupt_current_processing()

    monkeypatch.setattr(pack.nodes.progress, "tell", cancel)
    pictures = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (clip_vision,) = TinyCLIPVision().build()
        with pytest.raises(management.InterruptProcessingException):
            run(cpdm.CopyrightMetric, pictures[:1], pictures, clip_vision, FILE, pictures)
    assert told == ["comparing\n1 of 3"]
    assert not management.processing_interrupted(), "the next run is not stopped"

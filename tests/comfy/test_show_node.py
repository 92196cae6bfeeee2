"""Show Erasure: text and picture of what an erasure is, from a file or from a socket."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_erasures import of_the_encoder, of_the_network, run

from unlearn.__main__ import main

pytestmark = pytest.mark.usefixtures("node_body")

RECORD = {
    "method": "closed_form",
    "date": "2026-11-30",
    "version": "0.1.0",
    "architecture": "IconCanvas, text encoder IconCanvasClip",
    "settings": {"anchor": "koala", "seed": 7},
    "measured": {
        "verdict": {
            "concepts": {"fox": {"verdict": "gone", "before": 4, "after": 0}},
            "of": 1,
            "pictures": 4,
            "seconds": 1.0,
            "given": False,
        }
    },
}
GONE = "fox is gone: its own prompts show it in 0 of 4 pictures, 4 before."


@pytest.fixture
def loras(tmp_path: Path, pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder of erasures."""
    import folder_paths

    for name in ("loras", "text_encoders"):
        (tmp_path / name).mkdir()
        places = ([str(tmp_path / name)], {".safetensors"})
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, places)
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path / "loras"


def with_pictures(pack: ModuleType, erasure: Any, before: float = 0.2, after: float = 0.8) -> Any:
    """Two dark pictures before, two bright ones after."""
    packed = pack.unlearn.render.thumbnails.packed
    sides = {"before": before, "after": after}
    found = {name: packed(torch.full((2, 200, 100, 3), value)) for name, value in sides.items()}
    return replace(erasure, pictures={"fox": found})


def test_it_says_what_the_command_says_and_shows_the_pictures(
    pack: ModuleType, parts: tuple, loras: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    erasure = with_pictures(pack, of_the_encoder(pack, parts[1], **RECORD))
    erasure.save(loras / "fox.safetensors")
    picture, text = run(pack.nodes.show.ShowErasure, "fox.safetensors")
    assert main(["show", str(loras / "fox.safetensors")]) == 0
    assert text == capsys.readouterr().out.rstrip("\n")
    lines = text.splitlines()
    assert lines[0] == "fox (object)"
    assert "  made by          closed_form, 2026-11-30, Concept Unlearn 0.1.0" in lines
    assert any(
        line.startswith("  changes          1 weights of the text encoder") for line in lines
    )
    base = "  base             IconCanvas, text encoder IconCanvasClip, fingerprints of 1 weights"
    assert any(line.startswith(base) for line in lines)
    assert any(GONE in line for line in lines)
    assert "    anchor         koala" in lines
    # 64 x 128 pixels each, dark ones on the left and bright ones on the right.
    shades = (picture[0].mean(-1) * 10).round()
    assert {2.0, 8.0} <= set(shades.unique().tolist())
    (left, right) = ((shades == shade).nonzero()[:, 1].float().mean() for shade in (2, 8))
    assert left < right
    # What is connected counts more than the file, and lies in none.
    other = of_the_network(pack, parts[0], "owl", **{**RECORD, "measured": {}})
    picture, text = run(pack.nodes.show.ShowErasure, "fox.safetensors", other)
    assert text.startswith("owl (object)\n")
    assert "\n  file " not in text
    assert picture.shape[0] == 1
    assert picture.std() > 0.05, "there is text on it"
    assert pack.nodes.show.facts(other)[-1] == "What is left was not measured when it was made."


def test_it_says_whether_the_erasure_was_made_with_what_is_connected(
    pack: ModuleType, parts: tuple, loras: Path
) -> None:
    model, clip, _ = parts
    show, erasure_of = pack.nodes.show, pack.unlearn.core.erasure.Erasure
    own = of_the_encoder(pack, clip)
    (key,) = own.deltas
    assert show.fit(own, model, clip) == [
        "It changes nothing in a MODEL.",
        "It was made with this CLIP.",
    ]
    (said,) = show.fit(erasure_of(own.deltas, {"base": {key: "other"}}), None, clip)
    assert said.startswith("Warning: 1 of 1 weights differ")
    (said,) = show.fit(erasure_of(own.deltas, {}), None, clip)
    assert said == "It fits this CLIP, but does not say which one it was made with."
    (said,) = show.fit(erasure_of({key: {"diff": torch.ones(4, 4)}}, own.record), None, clip)
    assert "Connect the CLIP of the model it was made with." in said
    _, text = run(show.ShowErasure, "none", own, model, clip)
    assert text.endswith("\nIt was made with this CLIP.")


def test_without_an_erasure_it_says_what_to_do(pack: ModuleType, parts: tuple, loras: Path) -> None:
    show = pack.nodes.show.ShowErasure
    for call in (lambda: run(show, "none"), lambda: show.validate_inputs("none")):
        with pytest.raises(ValueError, match="There is no erasure yet"):
            call()
    assert show.validate_inputs("none", erasure=None), "a linked erasure is not known yet"
    with pytest.raises(ValueError, match="ERASURE that is connected is empty"):
        run(show, "none", None)


@pytest.mark.parametrize(
    "pictures",
    ["[]", "null", "{", '{"fox": 1}', '{"fox": {"before": ["x"]}}', '{"fox": {"before": []}}'],
)
def test_pictures_that_are_none_are_left_out_and_said(
    pack: ModuleType, parts: tuple, loras: Path, pictures: str
) -> None:
    found, unread = pack.unlearn.core.record.checked_pictures(pictures)
    assert found == {}
    assert unread[0].startswith("pictures")


def test_what_is_no_small_picture_is_not_shown(pack: ModuleType, parts: tuple) -> None:
    """Text that is no JPEG, a large picture, and sides of two sizes."""
    thumbnails, show = pack.unlearn.render.thumbnails, pack.nodes.show
    own = with_pictures(pack, of_the_encoder(pack, parts[1]))
    assert len(show.rows(own)) == 1
    (good, bad) = own.pictures["fox"]["before"], own.pictures["fox"]
    large = thumbnails.packed(torch.zeros(1, 64, 64, 3))
    for side in (["x"], ["aGVsbG8="], [*good[:1], *large], large):
        bad["before"] = side
        assert show.rows(own) == []
        run(show.ShowErasure, "none", own)

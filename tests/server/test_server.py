"""The client of the server: a prompt runs, is refused, or is cancelled."""

from __future__ import annotations

import struct

import pytest

from testbed.host.server import TEXT, Interrupted, Progress, PromptError, Server


def picture_prompt(width: int, prefix: str = "plain", radius: int = 1) -> dict:
    size = {"width": width, "height": 32, "batch_size": 2, "color": 0xFF0000}
    blur = {"image": ["1", 0], "blur_radius": radius, "sigma": 1.0}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "2": {"class_type": "ImageBlur", "inputs": blur},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


def test_server_runs_a_prompt(server: Server) -> None:
    seen: list[Progress] = []
    history = server.run(picture_prompt(64), on_progress=seen.append)
    assert [step.node_type for step in seen] == ["EmptyImage", "ImageBlur", "SaveImage"]
    pictures = server.images(history, 3)
    assert [picture.size for picture in pictures] == [(64, 32)] * 2
    assert (server.output / "plain_00001_.png").is_file()


def test_late_messages_of_the_prompt_before_are_not_taken_for_its_own(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = struct.pack(">I", 1) + b"2" + b"half done"
    begun = ("executing", {"prompt_id": "now", "node": "2", "display_node": "2"})
    ended = ("executing", {"prompt_id": "now", "node": None})
    events = [(TEXT, text), begun, (TEXT, text), ended]
    monkeypatch.setattr(server, "_events", lambda *_: iter(events))
    seen: list[Progress] = []
    server._follow(None, "now", picture_prompt(64), seen.append)
    assert [(step.node_type, step.text) for step in seen] == [
        ("ImageBlur", None),
        ("ImageBlur", "half done"),
    ]


def test_server_says_what_went_wrong(server: Server) -> None:
    with pytest.raises(PromptError, match="EmptyImage: Value 0 smaller than min of 1") as refused:
        server.run(picture_prompt(0))
    assert refused.value.node_id == "1"
    with pytest.raises(PromptError, match="outside the output folder") as raised:
        server.run(picture_prompt(64, prefix="../../outside"))
    assert raised.value.node_type == "SaveImage"


def test_server_can_be_interrupted_and_goes_on(server: Server) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.node_type == "ImageBlur":
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(picture_prompt(2048, radius=31), on_progress=interrupt)
    server.run(picture_prompt(64))

"""Workflows that an earlier version saved (commit 907276f) mean what they meant."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
from test_workflows import FILE_NAMES, native

from testbed.host.server import PromptError, Server
from testbed.host.workflow import api_prompt

SAVED = Path(__file__).resolve().parents[1] / "data" / "saved_by_0.1.0" / "workflows.zip"
with zipfile.ZipFile(SAVED) as saved:
    FILES = {name: json.loads(saved.read(name)) for name in saved.namelist()}
NAMES = sorted(name.removesuffix(".json") for name in FILES if name.endswith(".json"))


@pytest.fixture(scope="module")
def info(server: Server) -> dict[str, Any]:
    return server.object_info()


@pytest.mark.parametrize("name", NAMES)
def test_every_value_goes_where_it_went(name: str, info: dict[str, Any]) -> None:
    """A workflow saves the values of widgets by their order. The .api file holds what the earlier
    version's nodes made of them, by name. New inputs take their defaults."""
    found = api_prompt(native(FILES[f"{name}.json"]), info)
    wanted = FILES[f"{name}.api"]
    assert found.keys() == wanted.keys()
    for node, was in wanted.items():
        assert found[node]["class_type"] == was["class_type"]
        known = info[was["class_type"]]["input"]
        inputs = {**known.get("required", {}), **known.get("optional", {})}
        now = found[node]["inputs"]
        assert {key: now[key] for key in was["inputs"]} == was["inputs"]
        for new in now.keys() - was["inputs"].keys():
            assert now[new] == inputs[new][1]["default"], f"{was['class_type']}.{new}"


@pytest.mark.parametrize("name", NAMES)
def test_the_host_accepts_its_prompt(name: str, server: Server) -> None:
    """By the host's own check of types, ranges, choices and links. Only files may be missing."""
    refused = ""
    try:
        server.queue(FILES[f"{name}.api"])
    except PromptError as error:
        refused = str(error)
    server.forget_queue()
    missing = rf"({'|'.join(FILE_NAMES)})[^,]*not in|There is no erased_clip_\S+ in models"
    if name == "erased_clip_animatediff":  # without AnimateDiff-Evolved's nodes
        missing += "|KSampler: Required input is missing: model"
    assert not refused or re.search(missing, refused), refused

"""The table of a sweep: every cell that is done, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files.writing import whole_file
from .cell import Cell
from .task import verdict_of

JSON, PAGE = "table.json", "table.md"
HEADS = (
    *("model", "concept", "kind", "method", "settings", "seed", "verdict"),
    *("shown before", "shown after", "it explains", "its pictures changed", "others changed"),
    *("seconds", "peak MiB", "file"),
)
LEGEND = (
    "The figures are the receipt of each erasure: pictures of its own prompts that show it before "
    "and after, the share of the loss that it explains in them afterwards, and how much its own "
    "pictures and those of other things changed. `show --measure` measures them again."
)


def gather(cells: Sequence[Cell], failed: Mapping[str, str], folder: Path) -> int:
    """Write table.json and table.md into the folder, each whole or not at all. Returns how many
    cells are done.

    failed: why cells failed, by their keys. Raises OSError.
    """
    done, missing = [], []
    for cell in cells:
        found = cell.result()
        if found is None:
            missing.append({**cell.about, "failed": failed.get(cell.key, "")})
        else:
            done.append(found)
    texts = {JSON: as_json(done, missing), PAGE: as_markdown(done, missing)}
    for name, text in texts.items():
        with whole_file(folder / name) as new:
            new.write_text(text, encoding="utf-8")
    return len(done)


def as_json(done: Sequence[Mapping], missing: Sequence[Mapping]) -> str:
    return json.dumps({"cells": done, "missing": missing}, indent=1, sort_keys=True) + "\n"


def as_markdown(done: Sequence[Mapping], missing: Sequence[Mapping]) -> str:
    """A line for each cell that is done, and a list of the others."""
    lines = ["# Sweep", "", f"{len(done)} of {len(done) + len(missing)} cells. {LEGEND}", ""]
    lines += [_line(HEADS), _line(["---"] * len(HEADS))]
    lines += [_line(row_of(result)) for result in done]
    if missing:
        lines += ["", "Not done:", ""]
    for about in missing:
        why = about["failed"] or "it has not been run"
        lines.append(f"* {about['concept']} by {about['method']}{_settings(about)}: {why}")
    return "\n".join(lines) + "\n"


def row_of(result: Mapping[str, Any]) -> list[str]:
    """The cells of one line, as HEADS names them."""
    measured = result["record"].get("measured", {})
    receipt = measured.get("receipt", {})
    pictures = len(receipt.get("own", ()))

    def shown(when: str) -> str:
        return f"{receipt[f'shown_{when}']} of {pictures}" if receipt else ""

    def share(name: str) -> str:
        return f"{receipt[name]:.1%}" if receipt else ""

    return [
        *(str(result[name]) for name in ("model", "concept", "kind", "method")),
        ", ".join(f"{name} {value}" for name, value in result["settings"].items()),
        str(result["seed"]),
        verdict_of(result["record"]),
        *(shown("before"), shown("after"), share("explained_after")),
        *(share("own_changed"), share("near_changed")),
        f"{measured.get('seconds', 0):.1f}",
        str(measured.get("peak_mb", "")),
        result["file"],
    ]


def _settings(about: Mapping[str, Any]) -> str:
    values = {"seed": about["seed"], **about["settings"]}
    return "".join(f", {name} {value}" for name, value in values.items())


def _line(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"

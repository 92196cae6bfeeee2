"""The options that all studies with workers have, and the rows that an earlier run kept."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import testbed

from ..host import workers
from ..model.fingerprint import of_these_weights

DOCS = testbed.ROOT / "docs"


def parser(study: str, description: str | None) -> argparse.ArgumentParser:
    """A parser with --json, --page and --jobs. study: its module's name, and that of its files in
    docs. A worker is started with --worker and its jobs."""
    made = argparse.ArgumentParser(
        prog=f"python -m testbed.studies.{study}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--json", type=Path, default=DOCS / f"{study}.json")
    made.add_argument("--page", type=Path, default=DOCS / f"{study}.md")
    made.add_argument("--jobs", type=int, help=workers.JOBS_HELP)
    made.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return made


def kept_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run on the same weights; none if there was none."""
    return of_these_weights(json.loads(file.read_text("utf-8")) if file.exists() else [], file)

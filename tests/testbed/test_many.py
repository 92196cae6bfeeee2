"""The study of many concepts in one text encoder."""

from __future__ import annotations

import json
from argparse import Namespace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import small_closed_form

from testbed.model.measure import Prompt
from testbed.model.vocabulary import OBJECTS, STYLES
from testbed.studies import many

ROW = {
    **{"count": 8, "seed": 0, "ua": 1.0, "ira": 0.98, "cra": 0.96, "style_kept": 0.9},
    **{
        "behind": 1,
        "seconds": 4.2,
        "cpu_seconds": 4.0,
        "file_bytes": 900_000,
        "weights": "0",
        "machine": "one",
    },
}


def test_a_group_has_the_smaller_ones_in_it() -> None:
    groups = [many.group_of(count, 0) for count in many.COUNTS]
    for small, large in pairwise(groups):
        assert large[: len(small)] == small
    assert many.group_of(8, 0) != many.group_of(8, 1)
    assert set(many.group_of(63, 0)) < set(OBJECTS)


@pytest.mark.parametrize("count", [1, 48, 63])
def test_prompts_of_others_name_nothing_of_the_group(count: int) -> None:
    group = many.group_of(count, 1)
    prompts = many.prompts_of(group, 1)
    own = [prompt for prompt in prompts if prompt.measure == "own"]
    assert {prompt.object for prompt in own} <= set(group)
    assert len(own) == min(count, many.JUDGED) * len(STYLES)
    others = [prompt for prompt in prompts if prompt.measure != "own"]
    assert len(others) == many.NEAR + many.FAR
    assert not {prompt.object for prompt in others} & set(group)
    near = [prompt.text for prompt in others if prompt.object]
    assert len(set(near)) >= min(len(near), 7 * (64 - count))
    assert {prompt.style for prompt in others if prompt.object} == set(STYLES)


def test_the_measures_by_hand() -> None:
    def seen(object: str | None, style: str = "ink", character: str | None = None) -> dict:
        return {"object": object, "style": style, "character": character}

    prompts = [
        Prompt("", "fox", "ink"),
        Prompt("", "fox", "flat"),
        Prompt("", "owl", "ink", measure="in"),
        Prompt("", "cat", "ink", measure="in"),
        Prompt("", "bus", "ink", measure="in"),
        Prompt("", "bus", "flat", measure="cross"),
        Prompt("", character="Zorvik", measure="cross"),
    ]
    saw = [seen("fox"), seen("fox", "flat"), seen("owl"), seen("cat"), seen("car")]
    saw += [seen("car", "flat"), seen(None, "ink", "Zorvik")]
    sees = [seen("koala"), seen("fox", "ink"), seen("owl"), seen("dog"), seen("bus")]
    sees += [seen(None, "flat"), seen(None, "ink", None)]
    assert many.shares(prompts, saw, sees) == {
        "ua": 0.5,  # one of two foxes is gone
        "ira": 0.5,  # the owl stays; the cat does not; the bus was wrong before
        "cra": 0.5,  # the style stays; Zorvik does not
        "style_kept": 0.5,
    }


def test_pages_and_curve_are_written(tmp_path: Path) -> None:
    rows = [{**ROW, "seed": 1, "ua": 0.9}, ROW, {**ROW, "count": 1}]
    options = Namespace(json=tmp_path / "many.json", page=tmp_path / "many.md")
    many.write(rows, options)
    assert [(r["count"], r["seed"]) for r in json.loads(options.json.read_text())] == [
        (1, 0),
        (8, 0),
        (8, 1),
    ]
    text = options.page.read_text()
    assert "| 8 | 2 | 95.0% | 98.0% | 96.0% | 90.0% | 1.0 | 4.2 | 4.0 | 0.9 MB |" in text
    assert "Measured on one" in text
    assert (tmp_path / "many.png").stat().st_size > 5000


def test_a_row_is_measured(
    host: ModuleType, pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import testbed.model.pack
    from testbed.model.judge import Judge

    for name, value in {"JUDGED": 1, "NEAR": 2, "FAR": 2, "KEPT": tmp_path}.items():
        monkeypatch.setattr(many, name, value)
    monkeypatch.setattr(many.measure, "draw", partial(many.measure.draw, steps=2))
    methods = pack.unlearn.methods.registry.METHODS
    monkeypatch.setitem(methods, "closed_form", small_closed_form.few(pack.unlearn))
    vocabulary = pack.unlearn.prompts.anchor_choice.VOCABULARY
    monkeypatch.setitem(vocabulary, "object", vocabulary["object"][:16])
    row = many.row_of(pack, testbed.model.pack.checkpoint(), Judge(), 2, 0)
    assert set(row) == set(ROW)
    assert all(0 <= row[name] <= 1 for name in ("ua", "ira", "cra", "style_kept"))
    assert row["file_bytes"] > 10_000
    assert (tmp_path / "2_0.png").exists()

"""The soak: what it asks of the nodes, and when it passes. The run itself is python dev.py soak."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest

from testbed.host import soak

MIB = 2**20


@pytest.mark.parametrize("name", soak.METHODS)
def test_it_asks_each_node_for_what_it_has(pack: ModuleType, name: str) -> None:
    import nodes

    method = soak.METHODS[name]
    schema = nodes.NODE_CLASS_MAPPINGS[method.node].GET_SCHEMA()
    for more in ({}, method.endless, method.huge):
        given = soak.prompt(method, 1, more)["erase"]["inputs"]
        assert given.keys() <= {one.id for one in schema.inputs}
        assert given.keys() >= {one.id for one in schema.inputs if not one.optional}


def test_no_two_erasures_are_alike() -> None:
    for method in soak.METHODS.values():
        prompts = [soak.prompt(method, number, {})["erase"]["inputs"] for number in range(300)]
        assert len({(one["concept"], one["seed"]) for one in prompts}) == 300


@pytest.mark.parametrize(("last", "code"), [(900, 0), (1000, 0), (1019, 0), (1021, 1), (1600, 1)])
def test_it_passes_where_memory_stays(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    last: int,
    code: int,
) -> None:
    rows = [
        {
            "run": run,
            "resident": mib * MIB,
            "allocated": None,
            "kept_free": None,
            "tensors": 7,
            "tensor_bytes": MIB,
        }
        for run, mib in ((3, 1000), (10, 5000), (12, last))
    ]
    monkeypatch.setattr(soak, "Server", lambda *_, **__: nullcontext())
    monkeypatch.setattr(soak, "soak", lambda *_: iter(rows))
    page = tmp_path / "soak.md"
    monkeypatch.setattr("sys.argv", ["soak", "--runs", "4", "--page", str(page)])
    assert soak.main() == code
    said = f"{last / 1000 - 1:+.2%}"
    assert said in capsys.readouterr().out.splitlines()[-1]
    assert f"**{said} from the third run to the last**" in page.read_text(encoding="utf-8")


def test_a_page_that_is_not_done_says_so() -> None:
    row = {"resident": MIB, "allocated": MIB, "kept_free": MIB, "tensors": 7, "tensor_bytes": MIB}
    rows = [{"run": run, **row} for run in (3, 10)]
    assert "from the third run to the 10th, the last so far" in soak.page(rows, ["few_shot"], 50)

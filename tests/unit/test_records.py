"""What an erasure's file may hold: records that do not fit, tensors that no weight can take."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import sentence
from safetensors.torch import save, save_file

from unlearn.__main__ import main
from unlearn.cli.output import rewrite
from unlearn.core.erasure import FORMAT, HEADER, Erasure, ErasureError, combine, dot, full, parse
from unlearn.core.record import CONTROL, PARTS_DEPTH, checked
from unlearn.evaluate.receipt import measured_again, probed_again, recorded

FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"
KEY = FC1 + ".weight"
ASKED = {"kind": "object", "draws": 4, "rivals": 3, "steps": 4, "guidance": 5.0, "seed": 0}
RECEIPT = {
    "concepts": ["fox"],
    "own": ["a photo of a fox"],
    "near": ["a photo of a cat"],
    "settings": ASKED,
    "shown_before": 1,
    "shown_after": 0,
    "explained_before": 0.1,
    "explained_after": -0.01,
    "own_changed": 0.2,
    "near_changed": 0.01,
    "size": [128, 128],
    "clip_skip": 0,
}
PROBE = {
    "concept": "fox",
    "pre": 1.0,
    "post": {"Ring-A-Bell": 0.5},
    "asked": [{"name": "own prompts", "prompts": ["a fox"], "shown_before": 1, "shown_after": 0}],
    "sentences": ["fox is suppressed."],
    "settings": {**ASKED, "level": "quick", "ring_a_bell": {"steps": 25}},
    "size": [128, 128],
    "seconds": 1.5,
}
RECORD = {
    "concepts": ["fox"],
    "kind": "object",
    "method": "combined",
    "base": {KEY: "0" * 16},
    "loss": [1.0, 0.5],
    "steps": 2,
    "settings": {"mode": "balanced", "protect": ["cat"], "seed": 2**63 - 1},
    "measured": {"receipt": RECEIPT, "probe": [PROBE], "seconds": 2.0, "conflict": ["none"]},
    "parts": [{"concepts": ["fox"], "kind": "style", "method": "few_shot"}],
    "strengths": [1.0],
    "images": {"count": 4, "hash": None},
}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 8


def written(file: Path, record: Any, tensors: dict | None = None) -> Path:
    """A file with a record as it stands."""
    text = record if isinstance(record, str) else json.dumps(record)
    metadata = {"format": FORMAT, "concept_unlearn": text}
    save_file(tensors or {f"text_encoders.{FC1}.diff": random(6, 4)}, file, metadata)
    return file


def with_value(path: str, value: Any) -> dict:
    """The record with another value at a place such as measured.probe.0.concept."""
    record = copy.deepcopy(RECORD)
    *parents, last = [int(name) if name.isdigit() else name for name in path.split(".")]
    box: Any = record
    for name in parents:
        box = box[name]
    box[last] = value
    return record


# Records


def test_a_good_record_is_read_whole(tmp_path: Path) -> None:
    found = Erasure.load(written(tmp_path / "a.safetensors", RECORD))
    assert found.record == RECORD
    assert found.unread == ()
    assert found.remark == ""
    assert [what for what, _ in recorded(found)] == ["receipt", "probe"]


def deep(levels: int) -> list:
    outer: list = []
    inner = outer
    for _ in range(levels):
        inner.append([])
        inner = inner[0]
    return outer


@pytest.mark.parametrize(
    ("path", "value", "absent"),
    [
        ("note", deep(900), "note (is more than 64 levels deep)"),
        ("measured.note", deep(900), "measured.note (is more than 64 levels deep)"),
        ("measured.probe", None, "measured.probe (is None)"),
        ("measured.probe.0", [1], "measured.probe.1 (is [1])"),
        ("measured.probe.0.asked", [], "measured.probe.1 (asked is [])"),
        ("measured.probe.0.settings", {"kind": "object"}, "(settings level is missing)"),
        ("measured.probe.0.asked.0.shown_after", "x", "(asked shown_after is 'x')"),
        ("measured.probe.0.sentences", "abc", "(sentences is 'abc')"),
        ("measured.probe.0.concept", " ", "measured.probe.1 (concept is empty)"),
        ("measured.receipt", [1], "measured.receipt (is [1])"),
        ("measured.receipt.own", [], "measured.receipt (own is [])"),
        ("measured.receipt.settings.draws", 10**12, "(settings draws is 1000000000000)"),
        ("measured.receipt.settings.draws", 4.5, "(settings draws is 4.5)"),
        ("measured.receipt.settings.seed", True, "(settings seed is True)"),
        ("measured.receipt.settings.kind", "noise", "(settings kind is 'noise')"),
        ("measured.receipt.settings.kind", ["object"], "(settings kind is ['object'])"),
        ("measured.receipt.size", [8192, 8192], "measured.receipt (size is 8192)"),
        ("measured.receipt.size", [128], "measured.receipt (size is [128])"),
        ("measured.receipt.size", None, "measured.receipt (size is None)"),
        ("measured.receipt.clip_skip", None, "measured.receipt (clip_skip is None)"),
        ("measured.receipt.near", ["a"] * 4001, "measured.receipt (near is ['a', "),
        ("measured.receipt.shown_after", float("nan"), "(shown_after is nan)"),
        ("measured.receipt.own_changed", 10**400, "(own_changed is 1000"),
        ("measured.seconds", "long", "measured.seconds (is 'long')"),
        ("strengths", ["x"], "strengths (is 'x')"),
        ("settings.protect", "fox", "settings.protect (is 'fox')"),
        ("loss", [float("inf")], "loss (is inf)"),
        ("kind", ["style"], "kind (is ['style'])"),
        ("base", {KEY: 5}, f"base.{KEY} (is 5)"),
        ("concepts", ["fox\x1b[2J"], "concepts (is 'fox\\x1b[2J')"),
        ("concepts", ["\ud800"], "concepts (is '\\ud800')"),
        ("parts.0.measured", {"receipt": 1}, "parts.1.measured.receipt (is 1)"),
        ("parts.0.strengths", None, "parts.1.strengths (is None)"),
        ("a\x00name", 1, "'a\\x00name' (as a name)"),
        ("note", "x" * 30_000, "note (has 30000 characters)"),
        ("seed", 2**70, "seed (is 1180591620717411303424)"),
    ],
)
def test_what_no_reader_could_use_counts_as_absent_and_is_said(
    path: str,
    value: Any,
    absent: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = written(tmp_path / "a.safetensors", with_value(path, value))
    found = Erasure.load(file)
    assert absent in found.unread[0]
    assert len(found.unread) == 1
    # The rest is there, and all readers can do with it.
    assert torch.equal(found.delta(KEY), random(6, 4))
    assert not CONTROL.search(json.dumps(found.record, ensure_ascii=False))
    assert main(["show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"cannot be read and is ignored\n  {found.unread[0]}\n" in shown
    again = found.with_probes([PROBE])
    again.save(tmp_path / "again.safetensors")
    assert Erasure.load(tmp_path / "again.safetensors").record == again.record
    combine([found, found], [0.5, 0.5])


def test_the_json_of_a_record_says_it_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a.safetensors", with_value("measured.receipt", None))
    assert main(["show", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert set(json.loads(out)["measured"]) == {"probe", "seconds", "conflict"}
    assert err == (
        "These entries of its record cannot be read and are ignored: measured.receipt (is None).\n"
    )


def test_a_receipt_that_cannot_be_read_is_none_to_measure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = with_value("measured", {"receipt": {**RECEIPT, "size": [8192, 8192]}})
    file = written(tmp_path / "a.safetensors", record)
    said = sentence(["show", file, "--measure", "--base", "no_model"], capsys)
    assert "a.safetensors has no figures that can be measured again" in said
    assert "are ignored: measured.receipt (size is 8192)." in said


@pytest.mark.parametrize(
    "change",
    [
        {"size": [4096, 4096], "near": ["a cat"] * 4000},
        {"settings": {**ASKED, "steps": 1000, "draws": 1000}, "own": ["a fox"] * 4000},
    ],
)
def test_no_file_makes_anybody_draw_for_days(change: dict) -> None:
    """Each number may be, all of them together not."""
    record, unread = checked({"measured": {"receipt": {**RECEIPT, **change}}})
    assert record["measured"] == {}
    assert "runs of the denoiser at" in unread[0]


@pytest.mark.parametrize("record", [[1], None, {}, {**RECEIPT, "own": []}, {"settings": 5}])
def test_measuring_again_looks_before_it_draws(record: Any) -> None:
    for again, what in ((measured_again, "receipt"), (probed_again, "probe")):
        with pytest.raises(ErasureError, match=f"The {what} in the record cannot be read"):
            again(pytest.fail, pytest.fail, record)


def test_a_full_probe_in_1024_pixels_can_be_measured_again() -> None:
    settings = {**PROBE["settings"], "level": "full", "draws": 24, "steps": 50}
    rows = [{**PROBE["asked"][0], "name": str(i), "prompts": ["a fox"] * 8} for i in range(9)]
    own = {**PROBE, "settings": settings, "asked": rows, "size": [1024, 1024]}
    assert checked({"measured": {"probe": [own]}}) == ({"measured": {"probe": [own]}}, [])


def test_what_was_combined_too_often_is_left_out_at_its_depth() -> None:
    record: dict = {"concepts": ["fox"], "parts": []}
    for _ in range(PARTS_DEPTH + 1):
        record = {"concepts": ["fox"], "parts": [record]}
    found, unread = checked(record)
    assert unread == [f"{'parts.1.' * PARTS_DEPTH}parts (are more than 24 levels deep)"]
    assert Erasure({}, found).kinds == {"object"}


@pytest.mark.parametrize(
    "text", ["[" * 5000, '{"a":' * 100_000, "9" * 5000, '{"seed": ' + "9" * 5000 + "}", "null"]
)
def test_a_text_that_is_no_record_gets_a_sentence(text: str, tmp_path: Path) -> None:
    with pytest.raises(ErasureError, match="has no readable record of how it was made"):
        Erasure.load(written(tmp_path / "a.safetensors", text))


def test_parts_and_strengths_of_different_numbers_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {**RECORD, "strengths": [0.5], "parts": [*RECORD["parts"], {"concepts": ["owl"]}]}
    assert main(["show", str(written(tmp_path / "a.safetensors", record))]) == 0
    shown = capsys.readouterr().out
    assert "fox at strength 0.5: few_shot" in shown
    assert "owl at unknown strength: unknown method" in shown


# Tensors


def low(up: torch.Tensor, down: torch.Tensor, alpha: Any = None) -> dict[str, torch.Tensor]:
    name = f"text_encoders.{FC1}"
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    return tensors if alpha is None else {**tensors, f"{name}.alpha": alpha}


def diff(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"text_encoders.{FC1}.diff": tensor}


def with_nan(tensor: torch.Tensor, value: float = float("nan")) -> torch.Tensor:
    tensor.view(-1)[-1] = value
    return tensor


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        (low(random(768, 4), random(3, 192)), "lora_up is (768, 4) and lora_down (3, 192), whose"),
        (low(random(6, 0), random(0, 4)), "lora_up has the shape (6, 0)"),
        (low(random(6), random(6)), "lora_up has the shape (6,)"),
        (low(random(6, 2), random(2, 0)), "lora_down has the shape (2, 0)"),
        (low(random(6, 2), with_nan(random(2, 4))), "lora_down holds NaN or infinite values"),
        (low(random(6, 2) * 1e20, random(2, 4) * 1e20), "its values are too large"),
        (low(random(6, 2), random(2, 4), torch.zeros(2)), "its alpha is not one finite number"),
        (low(random(6, 2), random(2, 4), torch.tensor(torch.nan)), "alpha is not one finite"),
        (diff(torch.tensor(1.0)), "its diff has the shape ()"),
        (diff(torch.zeros(0, 5)), "its diff has the shape (0, 5)"),
        (diff(with_nan(random(6, 4))), "its diff holds NaN or infinite values"),
        (diff(with_nan(random(6, 4), -torch.inf)), "its diff holds NaN or infinite values"),
        (diff(with_nan(random(6, 4).half(), torch.inf)), "its diff holds NaN or infinite values"),
        (diff(with_nan(random(6, 4).double(), 1e300)), "its diff holds NaN or infinite values"),
        (diff(torch.ones(6, 4, dtype=torch.int8)), "its diff is of type torch.int8"),
        (diff(torch.ones(6, 4, dtype=torch.bool)), "its diff is of type torch.bool"),
        (diff(random(6, 4).to(torch.float8_e4m3fn)), "its diff is of type torch.float8_e4m3fn"),
        ({**diff(random(6, 4)), f"{FC1}.diff": random(6, 4)}, "it has two tensors for diff"),
    ],
)
def test_what_cannot_be_added_to_a_weight_is_refused(
    tensors: dict, why: str, tmp_path: Path
) -> None:
    file = written(tmp_path / "a.safetensors", RECORD, tensors)
    with pytest.raises(ErasureError) as error:
        Erasure.load(file)
    assert str(error.value).startswith(f"The file's delta of {KEY} cannot be used: ")
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("alpha", [1.0, 4.0, 0.0, -2.0, 3])
def test_alpha_divided_by_the_rank_is_the_scale(alpha: float, tmp_path: Path) -> None:
    up, down = random(6, 4).half(), random(4, 4, seed=1).half()
    tensors = low(up, down, torch.tensor(alpha))
    found = Erasure.load(written(tmp_path / "a.safetensors", {}, tensors))
    wanted = (alpha / 4) * (up.float() @ down.float())
    assert torch.allclose(found.delta(KEY), wanted, atol=1e-7)
    assert torch.allclose(combine([found, found]).delta(KEY), 2 * wanted, atol=1e-6)
    # In every way on: the file that is written, too.
    found.save(tmp_path / "b.safetensors", torch.float32)
    again = Erasure.load(tmp_path / "b.safetensors")
    assert torch.allclose(again.delta(KEY), wanted, atol=1e-7)


def test_without_an_alpha_the_scale_is_one_as_in_the_stock_loader() -> None:
    up, down = random(6, 4), random(4, 4, seed=1)
    assert torch.equal(full(parse(low(up, down))[KEY]), up @ down)


def test_an_alpha_alone_changes_nothing() -> None:
    assert parse({f"{FC1}.alpha": torch.tensor(1.0)}) == {}


def test_factors_of_a_convolution_are_read_as_the_stock_loader_reads_them() -> None:
    up, down = random(6, 2), random(2, 36, seed=1)
    found = parse(low(up.view(6, 2, 1, 1), down.view(2, 4, 3, 3)))
    assert torch.equal(full(found[KEY]), up @ down)


def test_a_large_product_is_never_formed(tmp_path: Path) -> None:
    """Of two factors of a megabyte: it would take 360 GB."""
    up, down = torch.full((300_000, 1), 0.25), torch.full((1, 300_000), 0.25)
    erasure = Erasure.load(written(tmp_path / "a.safetensors", {}, low(up, down)))
    assert erasure.norm() == pytest.approx(300_000 / 16)
    wide = Erasure.load(written(tmp_path / "b.safetensors", {}, low(down, up)))
    assert wide.norm() == pytest.approx(300_000 / 16)
    assert not combine([erasure, erasure]).changes_nothing


def test_dot_of_deltas_is_that_of_their_products() -> None:
    one = {"lora_up": random(6, 2), "lora_down": random(2, 4)}
    other = {"lora_up": random(6, 9, seed=1), "lora_down": random(9, 4, seed=2)}
    wanted = (full(one) * full(other)).sum().item()
    assert dot(one, other) == pytest.approx(wanted, abs=1e-5)
    assert dot(one, {"diff": full(other)}) == pytest.approx(wanted, abs=1e-5)


def test_changes_of_nothing_are_told_from_changes() -> None:
    zero, some = {"diff": torch.zeros(6, 4)}, {"diff": random(6, 4)}
    half = {"lora_up": torch.zeros(6, 2), "lora_down": random(2, 4)}
    assert Erasure({}).changes_nothing
    assert Erasure({KEY: zero, "b": half}).changes_nothing
    assert not Erasure({KEY: zero, "b": some}).changes_nothing


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_is_a_number(strength: float) -> None:
    erasure = Erasure({KEY: {"diff": random(6, 4)}}, {"concepts": ["fox"]})
    with pytest.raises(ErasureError, match=f"The strength is {strength}; give a finite number"):
        combine([erasure], [strength])


def test_a_sum_that_no_weight_can_take_is_refused() -> None:
    erasure = Erasure({KEY: {"diff": random(6, 4)}})
    with pytest.raises(ErasureError, match=f"At these strengths the delta of {KEY} is too large"):
        combine([erasure, erasure], [1e39, -1.0])


# Files


def header(change: Callable[[dict], None]) -> bytes:
    """A file whose header was changed."""
    metadata = {"format": FORMAT, "concept_unlearn": "{}"}
    good = save(diff(random(6, 4)), metadata)
    length = int.from_bytes(good[:8], "little")
    head = json.loads(good[8 : 8 + length])
    change(head)
    text = json.dumps(head).encode()
    return len(text).to_bytes(8, "little") + text + good[8 + length :]


NAME = next(iter(diff(random(1))))


@pytest.mark.parametrize(
    "content",
    [
        (HEADER + 1).to_bytes(8, "little") + b"{}",
        (2**63).to_bytes(8, "little") + b"{}",
        b"\x05",
        header(lambda head: head[NAME].update(dtype="C64")),
        header(lambda head: head[NAME].update(dtype="F4")),
        header(lambda head: head[NAME].update(shape=[2**62, 4])),
        header(lambda head: head[NAME].update(shape=[-1])),
        header(lambda head: head[NAME].update(data_offsets=[0, 2**60])),
        header(lambda head: head.update(__metadata__=[])),
        header(lambda head: head.update({"x\n" * 200: 5})),
    ],
)
def test_a_bad_header_gets_one_short_sentence(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(content)
    with pytest.raises(ErasureError, match=r"a\.safetensors is cut short or not a") as error:
        Erasure.load(file)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_header_of_too_many_tensors_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import unlearn.core.erasure

    monkeypatch.setattr(unlearn.core.erasure, "TENSORS", 2)
    tensors = {f"{i}.diff": random(1) for i in range(3)}
    with pytest.raises(ErasureError, match=r"a safetensors file \(3 tensors\)"):
        Erasure.load(written(tmp_path / "a.safetensors", {}, tensors))


def test_names_of_a_stranger_stay_on_one_line(tmp_path: Path) -> None:
    file = written(tmp_path / "a.safetensors", {}, {"a\nb\x1b[2J" + "x" * 5000: random(1)})
    with pytest.raises(ErasureError, match=r"of an unknown kind, a b\?\[2Jx") as error:
        Erasure.load(file)
    assert len(str(error.value)) < 300


def test_the_errors_name_is_short() -> None:
    """ComfyUI shows a class with its module, which of a node pack is a path."""
    assert ErasureError.__module__ == "builtins"


# The commands


def test_apply_and_export_do_not_say_that_nothing_is_erased(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "a.safetensors", {}, diff(torch.zeros(6, 4)))
    for command in ("apply", "export"):
        said = sentence([command, "no_model", file, "-o", tmp_path / "out"], capsys)
        assert "changes no weight, so it would erase nothing" in said


def test_figures_are_written_into_a_file_of_bfloat16_without_rounding_it(tmp_path: Path) -> None:
    """float16 cannot hold all of its values."""
    file = written(tmp_path / "a.safetensors", {}, diff(torch.tensor([[1e5, 1e-9]]).bfloat16()))
    was = Erasure.load(file)
    rewrite(file, lambda erasure: erasure.with_measured(seconds=1.0))
    now = Erasure.load(file)
    assert torch.equal(now.delta(KEY), was.delta(KEY))
    assert now.record["measured"] == {"seconds": 1.0}


def test_a_command_says_what_it_could_not_read_of_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from unlearn.cli.models import load_erasures

    file = written(tmp_path / "a.safetensors", with_value("measured.receipt", 5))
    load_erasures([file], [1.0])
    said = capsys.readouterr().err
    assert said.startswith("a.safetensors: These entries of its record cannot be read")

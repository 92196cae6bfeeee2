"""The registries: what a method declares, what the command makes of it, and that nothing changed.

The files in tests/data were written before the registries were there (tests/support/
before_registry.py). What the modes "paper" learn was written anew when these came to follow the
authors' released code.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import before_registry
import pytest

import unlearn
from unlearn.attacks.registry import ATTACKS
from unlearn.cli import erase, method_options
from unlearn.cli.output import Failure
from unlearn.core.erasure import Erasure
from unlearn.methods.parts.key_step_settings import KeyStepSettings
from unlearn.methods.parts.settings import constant, setting, settings_of
from unlearn.methods.registry import BASELINES, METHODS

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
RESULTS = json.loads((DATA / "tiny_results.json").read_text("utf-8"))
COMMAND = json.loads((DATA / "erase_options.json").read_text("utf-8"))
RUNS = before_registry.runs(unlearn)


def plain(value: Any) -> Any:
    """As JSON has it."""
    return json.loads(json.dumps(value, default=list))


# What the methods learn


@pytest.mark.parametrize("name", RUNS)
def test_a_method_learns_what_it_learnt(name: str) -> None:
    """With the same losses at every step: the last digits are the machine's. What begins where a
    search says and projects its gradients makes more of them."""
    near = 1e-2 if name == "key_step auto" else 1e-4
    now, before = plain(before_registry.result(RUNS[name]())), dict(RESULTS[name])
    assert set(now) == set(before)
    for figures in (now, before):
        figures.pop("hash")
    for part in ("kind", "steps", "start"):
        assert now.pop(part, None) == before.pop(part, None)
    assert now.pop("loss") == pytest.approx(before.pop("loss"), rel=near, abs=2e-6)
    assert now.pop("sizes") == pytest.approx(before.pop("sizes"), rel=near, abs=1e-7)
    for part in before:
        assert flat(now[part]) == pytest.approx(flat(before[part]), rel=10 * near, abs=1e-6)


def flat(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    return [x for one in value for x in flat(one)] if isinstance(value, list) else [value]


# The command


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise Failure(message)


@pytest.fixture(scope="module")
def parser() -> Parser:
    made = Parser("erase")
    erase.add(made)
    return made


def asked(parser: Parser, line: str) -> Any:
    """What `erase` makes of a command line, or what it says."""
    try:
        args = parser.parse_args(["model", "cat", "-o", "a.safetensors", *line.split()])
        chosen = erase.chosen(args)
    except Failure as error:
        return str(error)
    return {"method": chosen.method.name, "settings": plain(asdict(chosen.settings))}


def test_the_command_has_the_options_that_it_had(parser: Parser) -> None:
    now = {one["names"][0]: one for one in plain(before_registry.options(parser)) if one["names"]}
    before = {one["names"][0]: one for one in COMMAND["options"] if one["names"]}
    assert set(now) >= {*before, "--task"}  # a new method may add some
    changed = {name for name, one in before.items() if now[name] != one}
    assert changed == {"--method", "--kind", "--start"}
    assert now["--start"] == {**before["--start"], "metavar": "N"}
    assert set(now["--method"]["choices"]) >= set(before["--method"]["choices"])
    assert now["--method"]["default"] == before["--method"]["default"]
    assert now["--kind"]["choices"] == [*before["--kind"]["choices"], "action", "nudity"]


@pytest.mark.parametrize("line", before_registry.COMMAND_LINES)
def test_the_command_reads_what_it_read(parser: Parser, line: str) -> None:
    now, before = asked(parser, line), COMMAND["read"][line]
    if isinstance(before, str):  # refused, for the same options; its words may become better
        assert isinstance(now, str)
        assert re.findall(r"--\w+", now) == re.findall(r"--\w+", before)
        return
    if before["method"] == "key_step":  # whose kind was called task
        task = before["settings"].pop("task")
        before["settings"]["kind"] = {"instance": "character"}.get(task, task)
        # They go by the model since, and two more are there.
        assert now["settings"].pop("recipe") is None
        assert now["settings"].pop("precision") == "float32"
        before["settings"] |= {"guidance": None, "learning_rate": None}
    if before["method"] == "domain_correction":  # whose rate goes by mode and kind since
        assert now["settings"].pop("as_released") is False
        before["settings"]["discriminator_rate"] = None
    assert now == before


@pytest.mark.parametrize("option", ["--kind", "--task"])
@pytest.mark.parametrize("method", METHODS)
def test_the_command_takes_old_names(parser: Parser, option: str, method: str) -> None:
    found = asked(parser, f"--method {method} {option} instance")
    assert found["settings"]["kind"] == "character"


def test_an_option_has_the_limit_of_its_own_method(parser: Parser) -> None:
    """The parser knows the least of all methods."""
    few_shot = METHODS["few_shot"]

    @dataclass(frozen=True)
    class Settings(few_shot.settings):
        warm_up: int = setting(7, "How many.", at_least=5)

    methods = {"few_shot": few_shot, "warm": replace(few_shot, name="warm", settings=Settings)}
    made = Parser()
    made.add_argument("--method")
    method_options.add(made, methods)

    def chosen(*line: str) -> Any:
        return method_options.chosen(methods, made.parse_args(["--method", "warm", *line]))[1]

    assert chosen("--warm-up", "5").warm_up == 5
    with pytest.raises(Failure, match="it must be a whole number, at least 5"):
        chosen("--warm-up", "4")
    low = {"rank": replace(few_shot.described["shots"], at_least=3)}
    assert method_options.all_options(methods)["warm-up"].keys() == {"warm"}
    shots = SimpleNamespace(name="warm", described=low, settings=few_shot.settings)
    with pytest.raises(Failure, match="warm takes at least 3; correct --shots"):
        method_options.chosen({"warm": shots}, SimpleNamespace(method="warm", shots=2))


def test_key_step_has_nudity_and_the_others_have_actions(parser: Parser) -> None:
    assert asked(parser, "--method key_step --kind nudity")["settings"]["kind"] == "nudity"
    assert asked(parser, "--kind action")["settings"]["kind"] == "action"
    assert asked(parser, "--kind nudity") == (
        "few_shot takes one of object, style, character, action; correct --kind."
    )
    assert asked(parser, "--method key_step --kind action") == (
        "key_step takes one of object, style, character, nudity; correct --kind."
    )


def test_the_help_says_what_each_method_does_with_an_option(parser: Parser) -> None:
    text = " ".join(parser.format_help().split())
    assert "few_shot, mode paper: passes over the pictures (default: 4)" in text
    assert "(default: few_shot, key_step off; domain_correction orthogonal)" in text
    assert "key_step, mode balanced: trajectories walked at once (default: 2)" in text
    assert "--task" not in text


# Kinds by their old names


def test_key_step_takes_old_names() -> None:
    assert KeyStepSettings(task="instance") == KeyStepSettings(kind="character")
    assert KeyStepSettings(kind="instance").kind == "character"
    assert replace(KeyStepSettings(kind="style"), steps=20).kind == "style"
    assert replace(KeyStepSettings(kind="style"), task="instance").kind == "character"
    assert "task" not in asdict(KeyStepSettings(task="style"))


def test_an_erasure_that_was_saved_with_a_task_is_read(tmp_path: Path) -> None:
    import torch

    record = {"concepts": ["Zorvik"], "kind": "instance", "method": "key_step"}
    record["settings"] = {"mode": "paper", "task": "instance", "steps": 50}
    Erasure({"a": {"diff": torch.ones(2, 2)}}, record).save(tmp_path / "a.safetensors")
    read = Erasure.load(tmp_path / "a.safetensors")
    assert not read.unread
    assert read.kinds == {"character"}
    assert read.concepts_of("character") == ["Zorvik"]
    assert read.record["settings"] == record["settings"]


# Settings


def test_settings_say_what_they_are() -> None:
    @dataclass(frozen=True)
    class Settings:
        size: Literal["small", "large"] = setting("small", "How large.", optional=True)
        steps: int | None = setting(None, "How many.", at_least=1, own="20", option="count")
        words: tuple[str, ...] = setting((), "Which.", modes=("paper",), widget=None)
        rate: float = constant(0.5, "How fast.")

    size, steps, words, rate = settings_of(Settings).values()
    assert (size.type, size.choices, size.optional) == (str, ("small", "large"), True)
    assert (steps.type, steps.may_be_none, steps.usual) == (int, True, "20")
    assert (steps.option, steps.widget) == ("count", "steps")
    assert (words.type, words.modes, words.option, words.widget) == (
        tuple,
        ("paper",),
        "words",
        None,
    )
    assert (rate.type, rate.option, rate.widget) == (float, None, None)


def test_a_setting_without_help_is_an_error() -> None:
    @dataclass(frozen=True)
    class Settings:
        steps: int = 3

    with pytest.raises(TypeError, match=r"Settings\.steps needs a default and a help"):
        settings_of(Settings)


@pytest.mark.parametrize("method", [*METHODS.values(), *BASELINES.values()], ids=lambda m: m.name)
def test_every_setting_of_every_method_is_described(method: Any) -> None:
    for one in method.described.values():
        assert one.help.endswith("."), one.name
        if one.may_be_none and (one.option or one.widget):
            assert one.own, f"{one.name} does not say what the method's own value is"


# The pages


def test_the_pages_name_every_method_and_attack() -> None:
    papers = (ROOT / "docs" / "papers.md").read_text("utf-8")
    guide = (ROOT / "docs" / "guide.md").read_text("utf-8")
    for method in METHODS.values():
        assert f"\n### {method.title}\n" in guide
        assert method.title in papers
    for one in (*METHODS.values(), *BASELINES.values(), *ATTACKS.values()):
        assert f"(https://arxiv.org/abs/{one.paper})" in papers, one.name
    assert all(f"({name})" in papers or name in papers for name in ATTACKS)

"""CONTRIBUTING.md's recipes: a method and an attack are one file each, and all else follows."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

import pytest
import recipes
import torch
from tiny import Stages, TinyModel, TinyNetworkModel

METHOD, ATTACK = "anchor_pull", "Spelling"


@pytest.fixture(scope="module")
def science(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """science(module): a module of unlearn/, in a copy that has the recipes' two files more."""
    folder, name = tmp_path_factory.mktemp("recipes"), "unlearn_with_recipes"
    recipes.science(folder, name)
    sys.path.insert(0, str(folder))
    yield lambda module: import_module(f"{name}.{module}")
    sys.path.remove(str(folder))
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_recipe_is_one_file() -> None:
    assert list(recipes.files()) == [
        "unlearn/methods/anchor_pull.py",
        "unlearn/attacks/spelling.py",
    ]


# The method


def test_the_registry_finds_the_method(science: Any) -> None:
    methods = science("methods.registry").METHODS
    assert set(methods) >= {METHOD, "few_shot", "key_step", "domain_correction"}
    assert methods[METHOD].node_id == "AnchorPullUnlearn"


def test_the_method_runs_and_takes_the_concept_to_the_anchor(science: Any) -> None:
    method, model = science("methods.registry").METHODS[METHOD], TinyModel()
    settings = method.settings(anchor="dog", steps=60)
    steps: list[int] = []
    erasure = method.run(model, ["cat"], settings, progress=lambda step, *_: steps.append(step))
    assert steps == list(range(1, 61))
    assert erasure.record["method"] == METHOD
    assert erasure.record["settings"] == asdict(settings)
    erased = model.erased(erasure)
    aim = model.encode(["a photo of a dog"]).cross

    def far(one: TinyModel) -> float:
        return (one.encode(["a photo of a cat"]).cross - aim).norm().item()

    assert far(erased) < 0.7 * far(model)


def test_the_method_trains_words_as_the_encoder_reads_them(science: Any) -> None:
    method = science("methods.registry").METHODS[METHOD]
    settings = method.settings(anchor=" dog ", protect=("fox", " fox"), steps=1)
    record = method.run(TinyModel(), ["cat", "cat "], settings).record
    assert record["concepts"] == ["cat"]
    assert record["settings"]["anchor"] == "dog"
    assert list(record["settings"]["protect"]) == ["fox"]


def parser(science: Any, command: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(exit_on_error=False)
    science(f"cli.{command}").add(made)
    return made


def erase(science: Any, *options: str) -> Any:
    line = ["model", "cat", "-o", "a.safetensors", "--method", METHOD, *options]
    return science("cli.erase").chosen(parser(science, "erase").parse_args(line))


def test_the_command_has_the_methods_options(science: Any) -> None:
    chosen = erase(
        science, "--steps", "7", "--anchor", "dog", "--trainable", "all", "--protect", "fox, owl"
    )
    assert chosen.method.name == METHOD
    assert (chosen.settings.steps, chosen.settings.anchor) == (7, "dog")
    assert chosen.settings.trainable == "all"
    assert chosen.settings.protect == ("fox", "owl")
    assert chosen.settings.batch == 4, "what is not given is the method's own"
    text = " ".join(parser(science, "erase").format_help().split())
    assert f"{METHOD}: how many steps (default: 40)" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "2"], "anchor_pull has no setting --epochs; leave it out."),
        (["--images", "a.png"], "anchor_pull takes no pictures, it draws its own"),
        (["--trainable", "cross-attention"], "anchor_pull takes one of mlp-final-attn, mlp"),
    ],
)
def test_the_command_refuses_what_the_method_has_not(
    science: Any, options: list[str], said: str
) -> None:
    with pytest.raises(science("cli.output").Failure, match=said):
        erase(science, *options)


def test_the_methods_limits_are_the_commands(science: Any) -> None:
    with pytest.raises(argparse.ArgumentError, match="it must be a whole number, at least 1"):
        erase(science, "--batch", "0")


# The attack


def probe(science: Any, **more: Any) -> Any:
    """The tiny model, asked for a cat; nothing was erased."""
    module, model = science("evaluate.probe"), TinyNetworkModel()
    chosen = module.settings("quick", prompts=2, phrasings=0, draws=2, rivals=2, steps=2)
    ways = [lambda: nullcontext(model)] * 2
    with torch.no_grad():
        return module.probe(*ways, "cat", frozenset({"encoder"}), chosen, **more)


def test_the_registry_puts_the_attack_among_those_by_prompts(science: Any) -> None:
    attacks = science("attacks.registry").ATTACKS
    names = list(attacks)
    assert names.index("Ring-A-Bell") < names.index(ATTACK) < names.index("UnlearnDiffAtk")


def test_the_probe_runs_the_attack_and_tells_of_it(science: Any) -> None:
    told: list[str] = []
    found = probe(science, attacks=[ATTACK], progress=Stages(lambda what, *_: told.append(what)))
    (row,) = (one for one in found.asked if one.is_attack)
    assert row.name == ATTACK
    assert all("c a t" in prompt for prompt in row.prompts)
    assert "attacking with Spelling" in told
    assert f"post-attack, {ATTACK} " in found.success()
    assert ATTACK in found.table()
    record = found.record()
    assert set(record["post"]) == {ATTACK}
    assert record["settings"]["spelling"] == {"seed": 0}


def test_what_an_attack_had_on_the_way_is_drawn_look_by_look(
    science: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the seeds of its last words, since a success by another seed would be another matter."""
    module, attacks = science("evaluate.probe"), science("attacks.attack")
    found = attacks.Found(["c a t", "c at"], [["one", "two"], ["three", "four"]])
    made = replace(module.ATTACKS[ATTACK], run=lambda *given: found)
    monkeypatch.setitem(module.ATTACKS, ATTACK, made)
    drawn: list[tuple] = []
    plain = TinyNetworkModel.sample

    def sample(self, prompts, seed, *more):
        drawn.append((list(prompts), seed))
        return plain(self, prompts, seed, *more)

    monkeypatch.setattr(TinyNetworkModel, "sample", sample)
    result = probe(science, attacks=[ATTACK])
    (row,) = (one for one in result.asked if one.name == f"{ATTACK}, on the way")
    assert row.prompts == ["one", "two", "three", "four"]
    assert len(row.shown_before) == len(row.shown_after) == len(row.before) == 4
    seeds = {tuple(prompts): seed for prompts, seed in drawn}
    assert seeds["one", "two"] == seeds["three", "four"] == seeds["c a t", "c at"]
    assert result.looked() == [ATTACK]
    assert set(result.record()["post_first"]) == {ATTACK}


def test_the_command_takes_the_attacks_name(science: Any) -> None:
    args = parser(science, "probe").parse_args(["model", "a.safetensors", "--attacks", "spelling"])
    assert args.attacks == ["spelling"]


# The benchmark


def test_a_method_without_an_entry_gets_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from testbed.bench import plan
    from unlearn.methods import registry

    assert plan.entries([*registry.METHODS, METHOD])[METHOD] == {"balanced": plan.FEW}
    assert set(registry.METHODS) <= set(plan.METHODS)

"""What the registries of methods and attacks must not have changed, as plain data.

The files in tests/data were written by these functions before the registries were there: the
nodes' schemas, the options of `erase` and how it reads them, and what each method learns on the
tiny model.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
from dataclasses import asdict
from types import ModuleType
from typing import Any

import torch
from tiny import TinyModel, TinyNetworkModel

TRAINING_NODES = ("FewShotEncoderUnlearn", "KeyStepUNetUnlearn", "DomainCorrectionUNetUnlearn")


def schemas(nodes: ModuleType) -> dict[str, dict]:
    """What ComfyUI tells of each node of the pack: sockets and widgets in their order, with types,
    defaults and limits."""
    listed = asyncio.run(nodes.ConceptUnlearn().get_node_list())
    infos = (node.GET_NODE_INFO_V1() for node in listed)
    return {info["name"]: info for info in infos}


def options(parser: argparse.ArgumentParser) -> list[dict[str, Any]]:
    """Of each argument of a command all but its help."""
    return [
        {
            "names": action.option_strings,
            "dest": action.dest,
            "nargs": action.nargs,
            "const": action.const,
            "default": str(action.default),
            "choices": None if action.choices is None else list(action.choices),
            "metavar": action.metavar,
            "required": action.required,
            "has help": bool(action.help),
        }
        for action in parser._actions
    ]


COMMAND_LINES = [
    "",
    "--kind style",
    "--kind character --images a.png b.png",
    "--shots 3 --steps 7 --rank 4 --seed 5 --projection orthogonal --batch 3",
    "--shots 0",
    "--steps 0",
    "--steps x",
    "--epochs 2",
    "--mode paper --epochs 2 --batch 1",
    "--mode paper --epochs 0",
    "--mode paper --anchor dog",
    "--mode paper --protect dog",
    "--mode paper --steps 3",
    "--mode paper --harden",
    "--harden",
    "--harden 3.5",
    "--harden -1",
    "--anchor dog --protect wolf,owl",
    "--anchor (dog:1.2)",
    "--protect ,",
    "--trainable all",
    "--trainable cross-attention",
    "--trainable nothing",
    "--projection on",
    "--images a.png --shots 2",
    "--rank -1",
    "--seed 9223372036854775808",
    "--start 3",
    "--method nothing",
    "--method key_step",
    *(f"--method key_step --kind {kind}" for kind in ("object", "style", "character", "nothing")),
    "--method key_step --mode paper",
    "--method key_step --mode paper --kind character --anchor dog --steps 9",
    "--method key_step --mode paper --protect dog",
    "--method key_step --mode paper --batch 2",
    "--method key_step --mode paper --harden",
    "--method key_step --start auto --harden --batch 1 --trainable outside-cross-attention",
    "--method key_step --start 0 --rank 8 --seed 2 --protect dog",
    "--method key_step --start -1",
    "--method key_step --start soon",
    "--method key_step --shots 2",
    "--method key_step --epochs 2",
    "--method key_step --images a.png",
    "--method key_step --trainable mlp",
    "--method domain_correction",
    "--method domain_correction --kind style --shots 5 --steps 6 --batch 2 --rank 4 --seed 1",
    "--method domain_correction --mode paper --anchor dog --projection off",
    "--method domain_correction --mode paper --protect dog",
    "--method domain_correction --harden",
    "--method domain_correction --start 2",
    "--method domain_correction --epochs 2",
    "--method domain_correction --trainable cross-attention-kv",
    "--method domain_correction --images a.png",
]
"""What is typed behind `erase MODEL cat -o a.safetensors`."""


def runs(science: Any) -> dict[str, Any]:
    """{a name: what runs that method with these settings}, on the tiny model."""
    Few, Key = science.FewShotSettings, science.KeyStepSettings
    Domain = science.DomainCorrectionSettings
    pictures = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    made: dict[str, Any] = {}
    for mode in ("balanced", "paper"):
        for kind in ("object", "style", "character"):
            few = Few(mode=mode, kind=kind, max_steps=6, epochs=2, seed=3)
            made[f"few_shot {mode} {kind}"] = lambda few=few: science.few_shot(
                TinyModel(), ["cat", "dog"], pictures, few
            )
            domain = Domain(mode=mode, kind=kind, iterations=4, pictures=4, prompts=4, batch=2)
            made[f"domain_correction {mode} {kind}"] = lambda domain=domain: (
                science.domain_correction(TinyNetworkModel(), ["cat"], domain)
            )
        for task in ("object", "style", "instance", "nudity"):
            key = Key(mode=mode, task=task, steps=10, iterations=8, augment=0.5, seed=3)
            made[f"key_step {mode} {task}"] = lambda key=key: science.key_step(
                TinyNetworkModel(), ["cat", "dog"], key
            )
    auto = Key(steps=6, iterations=3, start="auto", projection="orthogonal", rank=2)
    made["key_step auto"] = lambda: science.key_step(TinyNetworkModel(), ["cat"], auto)
    return made


def result(erasure: Any) -> dict[str, Any]:
    """What a run has learnt: its record without dates, and its deltas as figures and as a hash."""
    record = erasure.record
    kept = {name: record[name] for name in ("kind", "steps", "loss") if name in record}
    kept |= {name: record[name] for name in ("start", "moved", "key_steps") if name in record}
    tensors = {key: erasure.delta(key) for key in sorted(erasure.deltas)}
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    sizes = {key: tensor.norm().item() for key, tensor in tensors.items()}
    return {**kept, "sizes": sizes, "hash": digest.hexdigest()}


def read(parser: argparse.ArgumentParser, line: str, chosen: Any, problems: tuple) -> Any:
    """What `erase` makes of a command line: the method's settings, or what it says is wrong."""
    try:
        args = parser.parse_args(["model", "cat", "-o", "a.safetensors", *line.split()])
        method = chosen(args)
    except problems as error:
        return str(error)
    return {"method": method.name, "settings": asdict(method.settings)}

"""Erasure files, their records and whole text encoders for `fuzz`, on the real ComfyUI."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from random import Random
from types import ModuleType, SimpleNamespace

import torch
from safetensors.torch import save_file

import testbed.host.process

from .. import ROOT
from . import changes as change

LAYER = "clip_l.transformer.text_model.encoder.layers.0."
NETWORK = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight"
SETTINGS = {
    "kind": "object",
    "draws": 4,
    "rivals": 3,
    "steps": 2,
    "guidance": 3.0,
    "seed": 0,
    "level": "quick",
    "protect": ["dog"],
    "prompts": 2,
    "phrasings": 1,
}
SHOWN = {"prompts": ["a photo of a cat"], "shown_before": 1, "shown_after": 0}
PROBE = {
    "concept": "cat",
    "pre": 1.0,
    "post": {"its own prompts": 0.0},
    "asked": [{"name": "its own prompts", **SHOWN}, {"name": "ring_a_bell", **SHOWN}],
    "sentences": ["cat is suppressed: its own prompts show it in 0 of 1 pictures (1 before)."],
    "settings": SETTINGS,
    "size": [64, 64],
    "seconds": 3.5,
}
RECEIPT = {
    "concepts": ["cat"],
    "own": ["a photo of a cat"],
    "near": ["a photo of a dog"],
    "settings": {name: SETTINGS[name] for name in list(SETTINGS)[:6]},
    "size": [64, 64],
    "shown_before": 1,
    "shown_after": 0,
    "explained_before": 0.25,
    "explained_after": 0.01,
    "own_changed": 0.2,
    "near_changed": 0.01,
    "clip_skip": 1,
}
RECORD = {
    "method": "few_shot",
    "concepts": ["cat"],
    "kind": "object",
    "settings": {"mode": "balanced", "rank": 2, "protect": ["dog"]},
    "seed": 0,
    "steps": 3,
    "loss": [1.0, 0.5, 0.25],
    "images": {"count": 4, "drawn_by_model": True, "hash": None},
    "base": {LAYER + "mlp.fc1.weight": "0123456789abcdef"},
    "measured": {
        "before": 1.0,
        "seconds": 2.5,
        "peak_mb": 300,
        "conflict": ["cat: moves 90% as far as alone, 95% in the same direction"],
        "probe": [PROBE],
        "receipt": RECEIPT,
    },
    "parts": [{"concepts": ["cat"], "method": "few_shot", "kind": "style", "date": "2026-01-01"}],
    "strengths": [1.0],
    "key": "0123456789abcdef",
    "version": "0.1.0",
    "date": "2026-01-01",
}


def metadata(record) -> dict[str, str]:
    return {"format": "concept-unlearn/1", "concept_unlearn": json.dumps(record)}


def tensors() -> dict[str, torch.Tensor]:
    """Changes of IconCanvas: low-rank, full, of a bias, and of the denoiser."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return 0.01 * torch.randn(shape, generator=generator)

    encoder, network = f"text_encoders.{LAYER}", NETWORK.removesuffix(".weight")
    return {
        f"{encoder}mlp.fc1.lora_up.weight": some(768, 2),
        f"{encoder}mlp.fc1.lora_down.weight": some(2, 192),
        f"{encoder}mlp.fc1.alpha": torch.tensor(2.0),
        f"{encoder}self_attn.out_proj.diff": some(192, 192),
        f"{encoder}mlp.fc1.diff_b": some(768),
        f"{network}.diff": some(*_host().model.model.state_dict()[NETWORK].shape),
    }


@cache
def _host() -> SimpleNamespace:
    """ComfyUI in this process, with the pack and with IconCanvas loaded."""
    testbed.host.process.start()
    import comfy.sd
    from server import PromptServer

    import nodes

    try:
        PromptServer.instance  # noqa: B018
    except AttributeError:
        PromptServer(asyncio.new_event_loop())

    def load(folder: Path) -> ModuleType:
        name = str(folder).replace(".", "_x_")
        if name not in sys.modules:
            assert asyncio.run(nodes.load_custom_node(str(folder))), folder
        return sys.modules[name]

    load(ROOT / "testbed" / "iconcanvas")
    pack = load(ROOT)
    file = ROOT / "testbed" / "weights" / "iconcanvas.safetensors"
    model, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(file))
    return SimpleNamespace(pack=pack, model=model, clip=clip)


def check_patches(patcher, erasure) -> None:
    """Assert that each patched weight is the original plus the change, and finite."""
    import comfy.lora

    own = patcher.model.state_dict()
    for key, patches in patcher.patches.items():
        weight = own[key].float()
        made = comfy.lora.calculate_weight(patches, weight.clone(), key)
        wanted = weight + erasure.delta(key).view(weight.shape)
        assert torch.allclose(made, wanted, rtol=1e-3, atol=1e-3, equal_nan=False), key


class Erasures:
    """Erasure files. They are loaded, shown, and put on a CLIP and a MODEL."""

    name, share = "erasures", 12

    def __init__(self, folder: Path) -> None:
        self.host, self.tensors = _host(), tensors()

    def make(self, rng: Random, folder: Path) -> Path:
        file = folder / "input.safetensors"
        given = metadata(RECORD)
        if rng.random() < 0.1:
            given = {**given, rng.choice(list(given)): rng.choice(("", "{}", "null", "x"))}
        file.write_bytes(change.safetensors(rng, self.tensors, given))
        return file

    def read(self, file: Path) -> None:
        from unlearn.core.erasure import Erasure
        from unlearn.evaluate.record_text import lines

        list(lines(Erasure.load(file), file.name, file.stat().st_size))
        pack, host = self.host.pack, self.host
        erasure = pack.unlearn.core.erasure.Erasure.load(file)
        assert all(erasure.delta(key).isfinite().all() for key in erasure.deltas)
        apply = pack.nodes.backend.apply
        if apply.has_part(erasure, "CLIP"):
            clip, _ = apply.erased_clip(host.clip, erasure)
            check_patches(clip.patcher, erasure)
        if apply.has_part(erasure, "MODEL"):
            model, _ = apply.erased_model(host.model, erasure)
            check_patches(model, erasure)


class Records:
    """Files with bad records. They are shown, combined, and given new records."""

    name, share = "records", 14

    def __init__(self, folder: Path) -> None:
        self.delta = {f"text_encoders.{LAYER}mlp.fc1.diff_b": torch.ones(768)}

    def record(self, rng: Random) -> object:
        record = RECORD
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            record = change.changed_value(rng, record)
        return record

    def make(self, rng: Random, folder: Path) -> Path:
        file = folder / "input.safetensors"
        save_file(self.delta, file, metadata(self.record(rng)))
        return file

    def read(self, file: Path) -> None:
        from unlearn.cli.show import check_record
        from unlearn.core.erasure import Erasure, combine
        from unlearn.evaluate.record_text import lines

        erasure = Erasure.load(file)
        said = list(lines(erasure, file.name, file.stat().st_size))
        assert all(isinstance(line, str) for line in said)
        json.dumps(erasure.record, sort_keys=True)
        assert erasure.kinds
        assert all(isinstance(concept, str) for concept in erasure.concepts_of("object"))
        combine([erasure, erasure], [1.0, 0.5])
        erasure.with_probes([PROBE]).with_measured(seconds=1.0)
        check_record(SimpleNamespace(file=file, measure=True, record=False), erasure)


class Receipts(Records):
    """Bad receipts and probes. They are measured again, on a model with few weights."""

    name, share = "receipts", 5

    def __init__(self, folder: Path) -> None:
        from tiny import TinyNetworkModel

        super().__init__(folder)
        self.model = TinyNetworkModel()

    def record(self, rng: Random) -> object:
        part = rng.choice(("probe", "receipt"))
        good = {"probe": [PROBE], "receipt": RECEIPT}[part]
        measured = {part: change.changed_value(rng, good)}
        return {**RECORD, "measured": measured}

    def read(self, file: Path) -> None:
        from unlearn.core.erasure import Erasure
        from unlearn.evaluate.receipt import measured_again, probed_again, recorded

        way = lambda: nullcontext(self.model)  # noqa: E731
        for what, record in recorded(Erasure.load(file)):
            again = measured_again if what == "receipt" else probed_again
            for figure in again(way, way, record):
                assert isinstance(figure.agrees, bool)


class Encoders:
    """Whole text encoders that others erased, for Load Erased CLIP; 45 MB each."""

    name, share = "encoders", 6

    def __init__(self, folder: Path) -> None:
        self.host = _host()
        prefix = "clip_l.transformer."
        own = self.host.clip.cond_stage_model.state_dict()
        self.good = {key: tensor.clone() for key, tensor in own.items() if key.startswith(prefix)}

    def make(self, rng: Random, folder: Path) -> Path:
        file = folder / "input.safetensors"
        file.write_bytes(change.safetensors(rng, self.good, None))
        return file

    def read(self, file: Path) -> None:
        nodes = self.host.pack.nodes
        erasure = nodes.erasures.read(self.host.clip, file)
        assert all(erasure.delta(key).isfinite().all() for key in erasure.deltas)
        if erasure.deltas:
            clip, _ = nodes.backend.apply.erased_clip(self.host.clip, erasure)
            check_patches(clip.patcher, erasure)

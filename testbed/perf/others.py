"""What else is measured: drawing, Identify, the probe, files of erasures, and the pack's import."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

import testbed

from ..model import drawings, pack
from . import wan
from .methods import CONCEPT, Amount, watched
from .models import SIZES, parts_of
from .phases import places_of_pack
from .roof import synchronise

SAMPLER_STEPS = 4  # of a picture at full size


def measure_drawing(size: str, quick: bool) -> dict:
    """One sampler step of one picture under classifier-free guidance, which is two latents."""
    package = pack.load()
    is_small = size == "iconcanvas"
    side = 8 * SIZES[size].side
    host = package.nodes.backend.model.ComfyModel(*parts_of(size), size=(side, side))
    count = 20 if is_small else 2 if quick else SAMPLER_STEPS
    times = Amount(3 if is_small else 1)

    def run(on_step: Callable[..., object]) -> None:
        for _ in range(times.warm + times.steps):
            x0 = host.sample([f"a photo of a {CONCEPT}"], 1, count)
            if is_small:  # random models have no autoencoder
                host.decode_latents(x0)
            on_step()

    with torch.inference_mode(), host.training(gradients=False):
        row = watched(host.device, places_of_pack(package), run, times)
    return {**shared_out(row, count), "unit": "sampler step", "batch": 1}


def shared_out(row: dict, count: int) -> dict:
    """The row of one of so many equal parts of what was measured."""
    phases = {name: seconds / count for name, seconds in row["phases"].items()}
    names = ("seconds", "cpu_seconds", "phases_of")
    return {
        **row,
        **{name: row[name] / count for name in names},
        "phases": phases,
        "all": [seconds / count for seconds in row["all"]],
    }


def measure_identify(size: str, quick: bool) -> dict:
    """An evaluation of the denoiser in Identify Concept, of one latent."""
    package = pack.load()
    is_small = size == "iconcanvas"
    side = 8 * SIZES[size].side
    host = package.nodes.backend.model.ComfyModel(*parts_of(size), size=(side, side))
    classifier = package.unlearn.evaluate.classifier
    words = list(package.unlearn.prompts.vocabulary.VOCABULARY["object"])
    asked, draws = (words[:8], 16) if is_small and not quick else (words[:3], 4)
    images = drawings.of(CONCEPT)[:4] if is_small else torch.rand(4, side, side, 3)
    if not is_small:
        host.encode_images = lambda some: host.noise(len(some), torch.Generator().manual_seed(1))
    times = Amount(3 if is_small else 1)
    found = []

    def run(on_step: Callable[..., object]) -> None:
        for _ in range(times.warm + times.steps):
            found.append(classifier.identify(host, images, asked, draws=draws))
            on_step()

    with torch.inference_mode(), host.training(gradients=False):
        row = watched(host.device, places_of_pack(package), run, times)
    count = found[-1].evaluations
    row = shared_out(row, count)
    whole = classifier._evaluations(classifier.rounds(len(words), 64))
    return {**row, "unit": "evaluation", "batch": 1, "steps": whole, "drawn": 0}


def measure_probe(size: str, quick: bool) -> dict:
    """The whole of Probe Erasure at level quick, of an encoder erased by the closed form."""
    from ..bench.attacks import probed
    from ..model.judge import Judge

    package, parts = pack.load(), parts_of(size)
    science = package.unlearn.methods.closed_form
    encoder = package.nodes.backend.encoder_model.ComfyEncoder(parts[1])
    with torch.inference_mode(), encoder.training():
        erasure = science.closed_form(encoder, [CONCEPT])
    edited = package.nodes.backend.apply.erased(*parts[:2], erasure)
    judge = Judge()
    more = {"attack": False, "phrasings": 0} if quick else {}

    def run(on_step: Callable[..., object]) -> None:
        probed(package, parts, edited, judge, CONCEPT, "quick", **more)
        on_step()

    device = parts[0].load_device
    row = watched(device, places_of_pack(package), run, Amount(1, 0))
    return {**row, "unit": "own prompts alone" if quick else "probe"}


def measure_erasures(size: str, quick: bool) -> dict:
    """Saving, loading, combining and applying erasures of the text encoder, in seconds.

    Four of full changes of the weights that few-shot unlearning trains, and four of rank 16, with
    random numbers.
    """
    package = pack.load()
    model, clip, vae = parts_of(size)
    side = 8 * SIZES[size].side
    host = package.nodes.backend.model.ComfyModel(model, clip, vae, size=(side, side))
    weights = host.selected("encoder", "mlp-final-attn")
    shapes = {key: tuple(weight.shape) for key, weight in weights.items()}
    base = host.fingerprints(weights)
    parts = {}
    for kind in ("full", "rank 16"):
        found = erasures_timed(package, (model, clip), shapes, base, kind)
        parts |= {f"{kind}: {name}": seconds for name, seconds in found.items()}
    return {"parts": parts}


def erasures_timed(package, models: tuple, shapes: dict, base: dict, kind: str) -> dict:
    """Seconds of each thing that is done with erasures of one kind, by its name."""
    science, generator = package.unlearn.core.erasure, torch.Generator().manual_seed(0)
    device, seconds = models[0].load_device, {}

    def taking(name: str, work: Callable[[], object]):
        synchronise(device)
        began = time.perf_counter()
        found = work()
        synchronise(device)
        seconds[name] = time.perf_counter() - began
        return found

    erasures = [
        science.Erasure(
            {key: random_delta(shape, kind, generator) for key, shape in shapes.items()},
            {"method": "few_shot", "concepts": [f"thing {i}"], "base": base},
        )
        for i in range(4)
    ]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.safetensors" for i in range(4)]
        for erasure, file in zip(erasures, files):
            erasure.save(file)
        taking("save one", lambda: erasures[0].save(files[0]))
        taking("load one", lambda: science.Erasure.load(files[0]))
        loaded = [science.Erasure.load(file) for file in files]
    combined = taking("combine four", lambda: science.combine(loaded))
    _, clip = taking("put on a CLIP", lambda: package.nodes.backend.apply.erased(*models, combined))

    def one_prompt() -> None:
        with torch.inference_mode():
            clip.encode_from_tokens(clip.tokenize("a photo of a cat"))

    taking("first prompt after it", one_prompt)
    taking("next prompt", one_prompt)
    return seconds


def random_delta(
    shape: tuple[int, ...], kind: str, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    if kind == "full" or len(shape) < 2:
        return {"diff": 1e-3 * torch.randn(shape, generator=generator)}
    up, down = (
        1e-2 * torch.randn(one, generator=generator) for one in ((shape[0], 16), (16, shape[1]))
    )
    return {"lora_up": up, "lora_down": down}


def measure_import(size: str, quick: bool) -> dict:
    """Seconds from ComfyUI's start to all of its own nodes, and those that the pack adds."""
    from ..host import process

    began = time.perf_counter()
    process.start()
    import comfy.model_management  # noqa: F401
    from server import PromptServer

    import nodes

    PromptServer(asyncio.new_event_loop())
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    with suppress(ImportError):  # what main.py imports beside
        import execution  # noqa: F401
    own = time.perf_counter()
    before = set(sys.modules)
    if not asyncio.run(nodes.load_custom_node(str(testbed.ROOT))):
        raise RuntimeError(f"ComfyUI cannot load {testbed.ROOT}; its log says why.")
    ended = time.perf_counter()
    return {
        "parts": {"ComfyUI with its own nodes": own - began, "the pack beyond it": ended - own},
        "modules": len(set(sys.modules) - before),
    }


def measure_wan(size: str, quick: bool) -> dict:
    """MiB of each part of unlearning in UMT5-XXL for Wan 2.1, of which no small machine holds all
    (wan.py)."""
    found = wan.measure_wan()
    return {"parts": {name: mib for name, mib in found.items() if name != "case"}}

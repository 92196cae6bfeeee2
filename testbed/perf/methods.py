"""What a step of each method costs, of the pack and of the plain loops, in phases.

Each function measures one case in a process of its own and returns its row.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch

from ..model import pack
from .memory import DriverMemory
from .models import SIZES, parts_of, plain_pipeline
from .phases import Phases, Steps, median_of, places_of_pack, places_of_plain
from .roof import Operations, synchronise

CONCEPT = "fox"
ANCHOR = "koala"
STYLE = "ink"


@dataclass
class Amount:
    """How much of a run is measured."""

    steps: int = 4
    warm: int = 1
    """Steps at first that do not count, since the first includes what comes before it."""
    batch: int | None = None
    """Pictures of a step; None: the method's own."""


def amount_of(size: str, quick: bool) -> Amount:
    """On a CPU a step at full size takes a minute or several."""
    if size == "iconcanvas":
        return Amount(2 if quick else 6)
    if torch.cuda.is_available():
        return Amount(2 if quick else 6)
    if size == "sd15":
        return Amount(1 if quick else 3, batch=1)
    return Amount(1, batch=1)


def settings_of(science, name: str, mode: str, amount: Amount) -> Any:
    """The settings of a method's run with as many steps as are measured."""
    steps = amount.steps + amount.warm
    batch = {} if amount.batch is None else {"batch": amount.batch}
    if name == "few_shot":
        # The paper's four pictures, as often as it takes.
        size = amount.batch or 2
        more = {"max_steps": steps} if mode == "balanced" else {"epochs": -(-steps * size // 4)}
        # One that stops by itself would be measured for fewer steps.
        more |= {"target": 1e9} if mode == "balanced" else {}
        return science.methods.few_shot.FewShotSettings(mode=mode, **batch, **more)
    if name == "key_step":
        # A style's paper settings: an object's train all but the cross-attention, whose state
        # alone takes 13 GB.
        kind = "style" if mode == "paper" else "object"
        more = batch if mode == "balanced" else {}
        more |= {"near": 0.0} if mode == "balanced" else {}
        return science.methods.key_step.KeyStepSettings(
            mode=mode, kind=kind, start=0, iterations=steps, **more
        )
    return science.methods.domain_correction.DomainCorrectionSettings(
        mode=mode,
        anchor=ANCHOR,
        iterations=steps,
        alone=0,
        pictures=4,
        prompts=4,
        **batch,
        **({"near": 0.0} if mode == "balanced" else {}),
    )


def whole_run(science, name: str, mode: str, batch: int | None) -> dict:
    """Steps of a whole run by default, at most, and the sampler steps of all pictures that it
    draws first. batch: of the steps that are measured; where the whole run's is another, only the
    few-shot paper's loop, which goes over its pictures, says how many such steps it takes."""
    held = science.methods.parts.retention.RetentionSet.COUNT * 20
    if name == "few_shot":
        settings = science.methods.few_shot.FewShotSettings(mode=mode)
        steps = settings.epochs * -(-settings.shots // (batch or settings.batch))
        if mode == "balanced":
            steps = settings.max_steps if batch in (None, settings.batch) else None
        return {"steps": steps, "drawn": settings.shots * 20}
    if name == "key_step":
        kind = "style" if mode == "paper" else "object"
        steps = science.methods.key_step.KeyStepSettings(mode=mode, kind=kind).length(1)
        is_whole = mode == "paper" or batch in (None, 2)
        drawn = held if mode == "balanced" else 0
        return {"steps": steps if is_whole else None, "drawn": drawn}
    settings = science.methods.domain_correction.DomainCorrectionSettings(mode=mode)
    steps = settings.of("iterations", 2000, 240)
    pictures = settings.of("pictures", 1000, 32)
    return {
        "steps": steps if batch in (None, settings.of("batch", 8, 4)) else None,
        "drawn": 25 * pictures + (held if mode == "balanced" else 0),
    }


@dataclass
class Calls:
    """The passes of a step: ("encode" or "predict", how many prompts or latents, whether with
    gradients), in their order."""

    of_step: list[list[tuple[str, int, bool]]] = field(default_factory=lambda: [[]])
    inside: int = 0

    def note(self, what: str, count: int) -> None:
        if not self.inside:
            self.of_step[-1].append((what, count, torch.is_grad_enabled()))

    def on_step(self, *told: Any) -> None:
        self.of_step.append([])


def counted(kind: type, calls: Calls) -> type:
    """A class like ComfyModel that notes its passes."""

    class Counted(kind):
        def predict(self, x_t, t, conditioning):
            calls.note("predict", len(x_t))
            return super().predict(x_t, t, conditioning)

        def encode(self, prompts):
            calls.note("encode", len(prompts))
            return super().encode(prompts)

    return Counted


def measure_method(name: str, mode: str, size: str, quick: bool) -> dict:
    """A method of the pack: seconds and phases of a step, what comes before the first one, the bare
    passes of a step, and memory beside the estimate that a node gives.

    The pictures that it draws first are random latents, unless they are IconCanvas's.
    """
    package = pack.load()
    science = package.unlearn
    amount = amount_of(size, quick)
    settings = settings_of(science, name, mode, amount)
    parts = parts_of(size)
    calls = Calls()
    side = 8 * SIZES[size].side
    host = counted(package.nodes.backend.model.ComfyModel, calls)(*parts, size=(side, side))
    method = science.methods.registry.METHODS[name]
    part = method.part
    if size != "iconcanvas":
        undrawn(host)
    planned = host.prepare(
        part, settings.weights, settings.rank, settings.rows, settings.prompts_kept
    )

    def run(on_step: Callable[..., object]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            erasure = method.run(host, [CONCEPT], settings, progress=on_step)
            erasure.save(Path(folder) / "erasure.safetensors")
        return erasure

    with torch.inference_mode(), host.training():
        row = watched(host.device, places_of_pack(package), run, amount, calls)
    step = calls.of_step[amount.warm + amount.steps - 1]
    tools = package.nodes.backend.differentiable
    # `training` watches what is written into saved tensors, which takes time and is only needed
    # where the text encoder has gradients.
    with torch.inference_mode(), host.training(gradients=part == "encoder"):
        row |= Bare(host, part, settings.weights, step, tools).measured(amount)
    return {
        **row,
        "bytes": least_bytes(host, part, settings, step),
        "batch": batch_of(name, settings),
        "rows": settings.rows,
        "passes": told_passes(step),
        "estimate_mb": planned.needed >> 20,
        "recomputed": bool(host.checkpointing),
        "precision": str(host.network.get_dtype_inference()).removeprefix("torch."),
        **whole_run(science, name, mode, amount.batch),
    }


def least_bytes(host, part: str, settings: Any, step: list[tuple[str, int, bool]]) -> int:
    """Bytes that a step reads and writes at the least: the weights once in each pass and twice on
    the way back, and what Adam holds of each trained value: it reads four numbers and writes three.
    """
    sizes = {"predict": host.layers, "encode": host.encoder}
    bytes_of = {what: sum(w.nbytes for w in m.parameters()) for what, m in sizes.items()}
    passes = sum(bytes_of[what] * (3 if grad else 1) for what, _, grad in step)
    trained = sum(w.numel() for w in host.selected(part, settings.weights).values())
    return passes + 7 * 4 * trained


def batch_of(name: str, settings: Any) -> int:
    """Pictures of a step."""
    if name == "key_step" and settings.mode == "paper":
        return 1
    return settings.of("batch", 8, 4) if name == "domain_correction" else settings.batch


def undrawn(host) -> None:
    """Let a model draw random latents, since drawing as many pictures would take an hour."""

    def sample(prompts, seed, steps=20, guidance=7.5):
        generator = torch.Generator().manual_seed(seed)
        return host.noise(len(prompts), generator)

    host.sample = sample


def watched(
    device: torch.device,
    places: list,
    run: Callable[[Callable[..., object]], Any],
    amount: Amount,
    calls: Calls | None = None,
) -> dict:
    """Seconds and phases of the steps of `run`, which is given what to call after each.

    On a GPU the phases are taken from a second run, since to read the clock between them the device
    must be waited for.
    """
    is_gpu = device.type == "cuda"
    row = {}
    for watches in (False, True) if is_gpu else (True,):
        phases = Phases(lambda: synchronise(device))
        steps = Steps(phases)
        if calls is not None:
            calls.of_step = [[]]

        def on_step(*told: Any, steps: Steps = steps) -> None:
            steps.on_step()
            if calls is not None:
                calls.on_step()

        with (
            phases.watching(*places) if watches else nullcontext(),
            DriverMemory(device, polls=watches) as memory,
        ):
            began = phases.clock()
            run(on_step)
            ended = phases.clock()
        taken = steps.ended[amount.warm : amount.warm + amount.steps]
        seconds, of_phases = median_of(taken)
        if not row:
            cpu = median(steps.cpu[amount.warm : amount.warm + amount.steps])
            row = {"seconds": seconds, "all": [round(s, 4) for s, _ in taken], "cpu_seconds": cpu}
        if watches:
            row |= {"phases": of_phases, "phases_of": seconds}
            done = sum(one for one, _ in steps.ended)
            after = phases.seconds - sum((c for _, c in steps.ended), Counter())
            row["after"] = {"seconds": max(0.0, ended - began - done), "phases": tidy(after)}
            first, of_first = steps.ended[0]
            row["first"] = {"seconds": first, "phases": tidy(of_first)}
            row |= memory.row()
    return row


def tidy(phases: Counter[str]) -> dict[str, float]:
    return {name: round(seconds, 6) for name, seconds in phases.items() if seconds > 1e-6}


def told_passes(step: list[tuple[str, int, bool]]) -> dict[str, int]:
    """The passes of a step by what they are: how many prompts or latents, all together."""
    found: Counter[str] = Counter()
    for what, count, grad in step:
        noun = "prompts" if what == "encode" else "latents"
        found[f"{noun}{' with gradients' if grad else ''}"] += count
    return dict(found)


class Bare:
    """The passes of a step with nothing around them: the same numbers of prompts and latents, and
    one backward pass to the trained weights.

    Blocks are recomputed where the step's are. Encoding is the pack's own.
    """

    def __init__(
        self, host, part: str, select: str, step: list[tuple[str, int, bool]], tools: ModuleType
    ) -> None:
        self.host, self.step, self.untracked = host, step, tools.untracked
        self.options = {"optimized_attention_override": tools.differentiable}
        self.weights = list(host.selected(part, select).values())
        network = host.network
        self.network, self.dtype = network.diffusion_model, network.get_dtype_inference()
        self.prompts = [f"a photo of a {CONCEPT}"]

    def measured(self, amount: Amount) -> dict:
        device = self.host.device
        times: list[float] = []
        cpu: list[float] = []
        with self.trainable():
            with Operations() as operations:
                self.run()
            for _ in range(amount.steps):
                synchronise(device)
                began, before = time.perf_counter(), time.process_time()
                self.run()
                synchronise(device)
                times.append(time.perf_counter() - began)
                cpu.append(time.process_time() - before)
        return {
            "bare_cpu_seconds": median(cpu),
            "bare_seconds": median(times),
            "operations": dict(operations.counts),
        }

    @contextmanager
    def trainable(self) -> Iterator[None]:
        for weight in self.weights:
            weight.requires_grad_(True)
        try:
            yield
        finally:
            for weight in self.weights:
                weight.requires_grad_(False)
                weight.grad = None

    def run(self) -> None:
        total: Any = 0
        encoded = None
        for what, count, grad in self.step:
            with torch.set_grad_enabled(grad):
                if what == "encode":
                    found = self.host.encode(self.prompts * count)
                    if grad:
                        total = total + found.cross.float().square().mean()
                    encoded = found[:1] if encoded is None or grad else encoded
                else:
                    with self.untracked():
                        output = self.predict(count, encoded, grad)
                    total = total + output.float().square().mean() if grad else total
        if isinstance(total, torch.Tensor):
            total.backward()
        for weight in self.weights:
            weight.grad = None
        self.host.release_saved_tensors()

    def predict(self, rows: int, encoded, grad: bool) -> torch.Tensor:
        host = self.host
        if encoded is None:
            with torch.no_grad():
                encoded = self._prompt = getattr(self, "_prompt", None) or host.encode(self.prompts)
        x = torch.randn(rows, *host.noise(1, torch.Generator()).shape[1:], device=host.device)
        # A recomputed block has a backward pass only if its input needs a gradient.
        x.requires_grad_(grad and bool(host.checkpointing))
        t = torch.full((rows,), 500.0, device=host.device)
        given = host.denoiser.conds(x[:1], encoded)
        context = given["c_crossattn"].cond.to(self.dtype).repeat(rows, 1, 1)
        more: dict[str, Any] = {"transformer_options": self.options}
        if "y" in given:
            more["y"] = given["y"].cond.to(self.dtype).repeat(rows, 1)
        return self.network(x.to(self.dtype), t, context=context, **more)


def measure_closed_form(size: str, quick: bool) -> dict:
    """The closed form of one concept: all of it, and encoding its prompts alone."""
    package = pack.load()
    science = package.unlearn.methods.closed_form
    host = package.nodes.backend.encoder_model.ComfyEncoder(parts_of(size)[1])
    settings = science.ClosedFormSettings(anchor=ANCHOR)
    times = amount_of(size, quick)
    with torch.inference_mode(), host.training():
        planned = host.prepare(
            "encoder", settings.weights, settings.rank, settings.rows, settings.prompts_kept
        )

        def run(on_step: Callable[..., object]) -> Any:
            for _ in range(times.warm + times.steps):
                with tempfile.TemporaryDirectory() as folder:
                    erasure = science.closed_form(host, [CONCEPT], settings)
                    erasure.save(Path(folder) / "erasure.safetensors")
                on_step()
            return erasure

        row = watched(host.device, places_of_pack(package), run, times)
        prompts = science.Prompts.of(host, [CONCEPT], settings)
        bare, cpu = [], []
        with Operations() as operations:
            for some in prompts.batches:
                host.read(some)
        for _ in range(times.steps):
            synchronise(host.device)
            began, before = time.perf_counter(), time.process_time()
            for some in prompts.batches:
                host.read(some)
            synchronise(host.device)
            bare.append(time.perf_counter() - began)
            cpu.append(time.process_time() - before)
    row |= {"bare_seconds": median(bare), "bare_cpu_seconds": median(cpu)}
    return {
        **row,
        "operations": dict(operations.counts),
        "unit": "concept",
        "passes": {"prompts": sum(map(len, prompts.batches))},
        "estimate_mb": planned.needed >> 20,
        "steps": 1,
        "drawn": 0,
    }


def measure_plain(name: str, size: str, quick: bool) -> dict:
    """A published loop, plainly (testbed/plain), for as many steps as the pack's paper mode."""
    from ..host import process
    from ..plain import domain_correction, few_shot, key_step
    from ..plain.model import PlainModel

    process.start()  # CLIP's tokenizer comes with the host
    amount = amount_of(size, quick)
    steps = amount.steps + amount.warm
    model = PlainModel(plain_pipeline(size))
    side = SIZES[size].side
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(4, 4, side, side, generator=generator).to(model.device)
    with ExitStack() as stack:
        if name == "few_shot":
            batch = amount.batch or 2
            epochs = -(-steps * batch // 4)

            def run(on_step: Callable[..., object]) -> None:
                few_shot.few_shot(
                    model, list(latents), CONCEPT, epochs=epochs, batch=batch, on_step=on_step
                )

        elif name == "key_step":
            batch = 1

            def run(on_step: Callable[..., object]) -> None:
                asked = {"start": 0, "iterations": steps, "on_step": on_step}
                key_step.key_step(model, CONCEPT, "style", **asked)

        else:
            batch = amount.batch or 8
            pairs = [(f"a photo of a {ANCHOR}", f"a photo of a {CONCEPT}")] * 4
            # Where there is no autoencoder, the pack does not encode either.
            shown = latents
            if model.vae is not None:
                shown = torch.rand(4, 3, 8 * side, 8 * side, generator=generator)

            def run(on_step: Callable[..., object]) -> None:
                asked = {"iterations": steps, "alone": 0, "batch": batch, "on_step": on_step}
                domain_correction.domain_correction(model, shown, pairs, **asked)

        stack.enter_context(torch.enable_grad())
        row = watched(model.device, places_of_plain(), run, amount)
    return {**row, "batch": batch, "precision": "float32", "recomputed": False}

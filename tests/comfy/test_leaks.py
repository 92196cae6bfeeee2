"""Nothing of a run stays in memory, however the run ends, but what it hands on.

By the science itself where it can be, on pictures of 32 pixels, so that a run takes a second.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import small_inception
import torch
from small_erasures import of_the_encoder, run
from small_probe import small_probe

from testbed.live import allocated, kept_free, tensors
from unlearn.evaluate.cpdm import inception

pytestmark = pytest.mark.usefixtures("node_body")

PICTURES = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
SETTINGS = {
    "few_shot": {"max_steps": 1, "batch": 1},
    "key_step": {"mode": "paper", "task": "style", "steps": 2, "start": 1, "iterations": 2},
    "domain_correction": {"mode": "paper", "pictures": 1, "batch": 1, "iterations": 2},
}
SLACK = 2**18  # bytes of Python's own

each_method = pytest.mark.parametrize(
    "method",
    ["few_shot", *(pytest.param(name, marks=pytest.mark.slow) for name in list(SETTINGS)[1:])],
)


@pytest.fixture(scope="module")
def parts(parts: tuple) -> tuple:
    """(MODEL, CLIP, VAE), the only ones that the host has loaded: others would go meanwhile."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    return parts


@pytest.fixture
def erase(pack: ModuleType, parts: tuple) -> Callable[..., Any]:
    """erase(method, on_step): the erasure, planned and trained as by its node."""

    def erased(method: str, on_step: Any = None, parts: tuple = parts, **how: Any) -> Any:
        science = getattr(pack.unlearn.methods, method)
        name = "".join(word.title() for word in method.split("_")) + "Settings"
        settings = getattr(science, name)(**SETTINGS[method])
        model = pack.nodes.backend.model.ComfyModel(*parts, size=(32, 32), **how)
        if method == "few_shot":
            given, planned = (PICTURES, settings), ("encoder", settings.trainable, 0, 1, 9)
        else:
            select = getattr(settings, "weights", None) or settings.trainable
            given, planned = (settings,), ("denoiser", select, 0, settings.rows)
        model.prepare(*planned)
        with model.training():
            return getattr(science, method)(model, ["fox"], *given, on_step)

    return erased


def assert_nothing_stays(work: Callable[[], object], times: int = 1) -> None:
    """The first time fills what is filled once: the host's caches and those of torch's kernels."""
    work()
    (count, size), bytes_before = tensors(), allocated()
    for _ in range(times):
        work()
    found, found_size = tensors()
    assert found <= count
    assert found_size <= size
    if bytes_before is not None:
        assert allocated() - bytes_before < SLACK


def test_the_measure_sees_a_cycle_through_autograd() -> None:
    """What was the fault: no collector sees such a cycle, and both of our measures must."""

    def leak() -> None:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor),
        ):
            torch.zeros(2**18, requires_grad=True).exp()

    tensors()  # what other tests left goes now, and what hung on that with the next
    (count, size), whole = tensors(), allocated()
    leak()
    found, found_size = tensors()
    assert found >= count + 2, "what went in, and what came out"
    assert found_size - size == pytest.approx(2**21, abs=SLACK)
    assert whole is None or allocated() - whole == pytest.approx(2**21, abs=SLACK)


@pytest.mark.skipif(kept_free() is None, reason="this system's allocator is not glibc's")
def test_what_a_run_left_free_goes_back_to_the_system(pack: ModuleType) -> None:
    """The last piece holds on to all before it: glibc by itself would keep them."""
    pieces = [torch.ones(25_000) for _ in range(1000)]
    last = pieces[-1]
    before = psutil.Process().memory_info().rss
    del pieces
    pack.unlearn.core.peak_memory.give_back()
    assert before - psutil.Process().memory_info().rss > 50 * 2**20
    assert last[0] == 1


# Planning


@pytest.mark.slow
def test_planning_keeps_nothing(pack: ModuleType, parts: tuple) -> None:
    def prepare() -> None:
        pack.nodes.backend.model.ComfyModel(*parts, size=(32, 32)).prepare(
            "encoder", "all", 0, 2, 10
        )

    def prepare_attack() -> None:
        pack.nodes.backend.model.ComfyModel(*parts, size=(32, 32)).prepare_attack(2, 2)

    assert_nothing_stays(prepare, 3)
    assert_nothing_stays(prepare_attack, 3)


# Training


@each_method
def test_nothing_stays_however_a_run_ends(
    pack: ModuleType, erase: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    import comfy.model_management as management

    progress = pack.nodes.progress.Progress(None, "unlearning", None)

    def cancel(step: int, *more: Any) -> None:
        management.interrupt_current_processing()
        progress.step(step, *more)

    def every_way() -> None:
        erase(method)
        with pytest.raises(management.InterruptProcessingException):
            erase(method, cancel)
        monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: 1)
        with pytest.raises(MemoryError, match="are free"):
            erase(method)
        monkeypatch.undo()

    assert_nothing_stays(every_way)


@pytest.mark.slow
def test_a_run_whose_backward_pass_fails_keeps_nothing(
    pack: ModuleType,
    erase: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where memory runs out in it. PyTorch would hold its graph until the next one."""

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            raise MemoryError

    changed = pack.unlearn.core.edit.Edit.changed

    def failing(*given: Any) -> torch.Tensor:
        return Fails.apply(changed(*given))

    erase("few_shot", checkpointing=True)
    before = tensors()
    monkeypatch.setattr(pack.unlearn.core.edit.Edit, "changed", failing)
    with pytest.raises(MemoryError):
        erase("few_shot", checkpointing=True)
    assert tensors() == before


@pytest.mark.slow
def test_a_run_that_diverges_keeps_nothing_but_what_was_good(
    pack: ModuleType, erase: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    science = pack.unlearn.methods.few_shot
    monkeypatch.setattr(science, "bounded_loss", lambda d, *_: d.mean() * torch.nan)

    def diverging() -> None:
        with pytest.raises(pack.unlearn.core.edit.Diverged):
            erase("few_shot")

    assert_nothing_stays(diverging)


@pytest.mark.slow
def test_the_whole_node_keeps_only_what_it_hands_on(
    pack: ModuleType, parts: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    seeds = iter(range(9))

    def unlearned() -> None:
        run(
            pack.nodes.few_shot.FewShotEncoderUnlearn,
            *parts,
            concept="fox",
            kind="object",
            images=PICTURES.repeat(1, 2, 2, 1),
            shots=1,
            size=64,
            mode="paper",
            trainable="mlp-final-attn",
            rank=0,
            max_steps=1,
            epochs=1,
            seed=next(seeds),
            verdict=False,
        )

    assert_nothing_stays(unlearned)


# The other nodes


def test_the_network_of_the_copyright_metric_goes_at_once(tmp_path: Path) -> None:
    """Without the collector, which may run when another model wants the memory already."""
    network = inception.load_inception(small_inception.write(tmp_path / "fid.pth"))
    network(PICTURES)
    weights = weakref.ref(network.network.fc.weight)
    gc.disable()
    try:
        del network
        assert weights() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_probe_keeps_nothing(pack: ModuleType, parts: tuple) -> None:
    """Planned as the node does it, and attacked once."""
    original, clip, vae = parts
    edited, _ = pack.nodes.backend.apply.erased_clip(clip, of_the_encoder(pack, clip))
    settings = replace(small_probe(pack), steps=2, prompts=1, phrasings=0, draws=2, rivals=2)
    science = pack.unlearn.evaluate.probe

    def probed() -> None:
        models = [
            pack.nodes.backend.model.ComfyModel(original, one, vae, (32, 32))
            for one in (clip, edited)
        ]
        chosen = pack.nodes.probe.fitting(models[1], settings)
        science.probe(
            models[0].training,
            models[1].training,
            "fox",
            frozenset({"encoder"}),
            chosen,
            attacks=["UnlearnDiffAtk"],
        )

    assert_nothing_stays(probed)

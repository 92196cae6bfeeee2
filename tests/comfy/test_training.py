"""What all training nodes share: when it is the same training, and how often its state is kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_erasures import few_shot_that

import testbed.model.pack

pytestmark = pytest.mark.usefixtures("node_body")


@pytest.fixture(scope="module")
def model(parts: tuple) -> Any:
    return parts[0]


def with_schedule(model: Any, *settings: Any) -> Any:
    """By the stock node ModelSamplingDiscrete."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, *settings)[0]


def test_another_noise_schedule_is_another_training(pack: ModuleType, model: Any) -> None:
    signature = pack.nodes.backend.identity.signature
    settings = [("eps", False), ("eps", True), ("v_prediction", False), ("lcm", False)]
    found = [signature(model), *(signature(with_schedule(model, *some)) for some in settings)]
    assert len(set(found)) == len(found)
    assert found[1:] == [signature(with_schedule(model, *some)) for some in settings]


@pytest.mark.slow
def test_another_model_merged_in_is_another_training(pack: ModuleType, model: Any) -> None:
    """By the stock node ModelMergeSimple, with a second model that differs in one weight."""
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    signature = pack.nodes.backend.identity.signature
    key = "diffusion_model.out.2.weight"
    seconds = [model.clone(), model.clone(), model.clone()]
    weight = model.model.state_dict()[key]
    for second, size in zip(seconds, (0.0, 0.1, 0.2)):
        second.add_patches({key: (torch.full_like(weight, size),)})
    found = [signature(ModelMergeSimple().merge(model, second, 0.5)[0]) for second in seconds]
    found.append(signature(ModelMergeSimple().merge(model, seconds[2], 0.25)[0]))
    assert len({signature(model), *found}) == 5


def test_another_autoencoder_is_another_training_where_there_are_pictures(
    pack: ModuleType, model: Any
) -> None:
    _, clip, vae = testbed.model.pack.checkpoint()
    *_, other = testbed.model.pack.checkpoint()
    next(other.first_stage_model.parameters()).data.add_(1.0)

    def key(images: torch.Tensor | None, vae: Any) -> str:
        settings = pack.unlearn.methods.few_shot.FewShotSettings()
        return pack.nodes.cache.training_key(
            "few_shot", ["fox"], settings, images, 128, model, clip, vae
        )

    pictures = torch.zeros(1, 8, 8, 3)
    assert key(pictures, vae) != key(pictures, other)
    assert key(None, vae) == key(None, other) == key(None, None)


def test_what_another_branch_has_loaded_makes_no_other_training(
    pack: ModuleType, model: Any
) -> None:
    """The host's modules are shared: another branch's noise schedule stays in them for a while."""
    import comfy.model_management as management

    signature = pack.nodes.backend.identity.signature
    other = with_schedule(model, "v_prediction", True)
    before = signature(model), signature(other)
    for branch in (other, model, other):
        management.load_models_gpu([branch])
        assert (signature(model), signature(other)) == before


@pytest.mark.parametrize("settings", [("v_prediction", True), ("eps", True), ("lcm", False)])
def test_the_noise_schedule_stays_while_the_host_has_the_network_unloaded(
    pack: ModuleType, checkpoint: Path, settings: tuple
) -> None:
    """As it unloads it for the autoencoder, between a step's noise and its prediction."""
    import comfy.model_management as management

    model, clip, _ = testbed.model.pack.checkpoint(checkpoint)
    host = pack.nodes.backend.model.ComfyModel(
        with_schedule(model, *settings), clip, None, (64, 64)
    )
    generator, t = torch.Generator().manual_seed(0), torch.tensor([100.0, 500.0, 999.0])
    x0, noise = host.noise(3, generator), host.noise(3, generator)

    def seen() -> list[torch.Tensor]:
        x_t = host.add_noise(x0, noise, t)
        return [x_t, host.target(x0, noise, t), host.predict_x0(x_t, t, noise)]

    with host.training():
        before = seen()
        management.unload_all_models()
        assert all(map(torch.equal, seen(), before))
        host.predict(before[0], t, host.encode(["a fox"]))
        assert all(map(torch.equal, seen(), before))


def test_model_that_is_unloaded_while_it_trains_keeps_no_lora(
    pack: ModuleType, checkpoint: Path
) -> None:
    """As when memory runs short in the middle of a run, for example for a live picture."""
    import comfy.model_management as management

    model, clip, _ = testbed.model.pack.checkpoint(checkpoint)
    before = {key: weight.clone() for key, weight in model.model.state_dict().items()}
    key = next(key for key in before if key.endswith("attn2.to_q.weight"))
    other = next(key for key in before if key.endswith("in_layers.2.weight"))
    lora = model.clone()
    assert len(lora.add_patches({k: (torch.ones_like(before[k]),) for k in (key, other)})) == 2
    management.load_models_gpu([lora])  # it has drawn before
    host = pack.nodes.backend.model.ComfyModel(lora, clip, None, (64, 64))
    with host.training(), host.edit("denoiser", "cross-attention"):
        assert not torch.equal(model.model.state_dict()[key], before[key])
        management.unload_all_models()
    after = model.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(getattr(m, "weight_function", None) for m in model.model.modules())


@pytest.mark.parametrize("part", ["denoiser", "encoder"])
def test_training_goes_on_where_the_host_has_unloaded_the_model(
    pack: ModuleType, checkpoint: Path, part: str
) -> None:
    """Loaded again, it is what it was, a LoRA on it and what is trained included."""
    import comfy.model_management as management

    model, clip, _ = testbed.model.pack.checkpoint(checkpoint)
    lora = model.clone()
    key = next(key for key in model.model.state_dict() if key.endswith("attn2.to_q.weight"))
    assert lora.add_patches({key: (0.01 * torch.ones(model.model.state_dict()[key].shape),)})
    select = "cross-attention" if part == "denoiser" else "mlp-final-attn"
    host = pack.nodes.backend.model.ComfyModel(lora, clip, None, (64, 64))
    with host.training(), host.edit(part, select) as edit:
        for delta in edit.deltas.values():
            delta.full.data.fill_(0.001)
        found = []
        for _ in range(2):
            x = host.noise(1, torch.Generator().manual_seed(0))
            predicted = host.predict(x, torch.tensor([500.0]), host.encode(["a fox"]))
            predicted.square().mean().backward()
            found.append([predicted.detach(), *(p.grad.clone() for p in edit.parameters())])
            for parameter in edit.parameters():
                parameter.grad = None
            management.unload_all_models()
    assert all(torch.allclose(*pair, rtol=1e-5, atol=1e-8) for pair in zip(*found))


def test_memory_of_weights_that_the_host_moves_becomes_free(pack: ModuleType) -> None:
    with torch.inference_mode():
        module = torch.nn.Linear(2, 2)
    held, values = weakref.ref(module.weight), module.weight.tolist()
    with pack.nodes.backend.aliasing.aliased([module]):
        assert held() is None
        assert module.weight.tolist() == values
    assert module.weight.tolist() == values
    assert not module.weight.requires_grad


def test_weights_that_the_host_moved_stay_where_it_put_them(pack: ModuleType) -> None:
    with torch.inference_mode():
        module = torch.nn.Linear(2, 2)
        moved, stayed = module.weight, module.bias
    with pack.nodes.backend.aliasing.aliased([module]):
        module.weight.data = module.weight.data.clone()
        there = module.weight
    assert module.weight is there
    assert module.weight is not moved
    assert module.bias is stayed


def test_weights_moved_before_a_run_can_be_kept_for_its_backward_pass(pack: ModuleType) -> None:
    """As the host leaves them that moves its inference tensors outside of inference mode."""
    module = torch.nn.Linear(2, 2).requires_grad_(False)
    with torch.inference_mode(False):
        module.to(torch.float64)
        assert not module.weight.is_inference()
        x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
        with pytest.raises(RuntimeError, match="version"):
            module(x)
        with pack.nodes.backend.aliasing.aliased([module]):
            module(x).sum().backward()
        assert torch.equal(x.grad, module.weight.sum(0, keepdim=True))


def test_what_the_host_adds_to_a_trained_weight_meanwhile_stays(
    pack: ModuleType, checkpoint: Path
) -> None:
    """Short of memory, it moves a module to the CPU and has its LoRA put on whenever it is used."""
    model, clip, _ = testbed.model.pack.checkpoint(checkpoint)
    host = pack.nodes.backend.model.ComfyModel(model, clip, None, (64, 64))
    with host.training():
        with host.edit("denoiser", "cross-attention") as edit:
            key = next(key for key in edit.deltas if key.endswith("attn2.to_q.weight"))
            module = model.model.get_submodule(key.rpartition(".")[0])
            module.weight_function.append(abs)
        assert module.weight_function == [abs]
        module.weight_function.remove(abs)


def test_weights_that_a_run_fetches_come_in_the_stream_that_computes(
    pack: ModuleType, parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    monkeypatch.setattr(management, "NUM_STREAMS", 2)
    model, clip, _ = parts
    with pack.nodes.backend.model.ComfyModel(model, clip, None, (64, 64)).training():
        assert management.NUM_STREAMS == 0
    assert management.NUM_STREAMS == 2


@pytest.mark.parametrize(
    ("missing", "found", "sentence"),
    [
        ("clip", None, "The CLIP that is connected is empty"),
        ("vae", {}, "The VAE that is connected is empty"),
        ("vae", None, "No VAE is connected"),
    ],
)
def test_what_a_loader_did_not_find_gets_a_sentence_before_any_work(
    pack: ModuleType, parts: tuple, missing: str, found: dict | None, sentence: str
) -> None:
    """It hands on None in place of a text encoder, and an empty autoencoder. Pictures need one."""
    from comfy.sd import VAE

    empty = None if found is None else VAE(sd=found)
    given = dict(zip(("model", "clip", "vae"), parts)) | {missing: empty}
    training = pack.nodes.training.TrainingRun(
        method=few_shot_that(pack, lambda *_: pytest.fail("it began")),
        concepts=["cat"],
        settings=pack.unlearn.methods.few_shot.FewShotSettings(),
        **given,
        size=64,
        images=torch.zeros(1, 64, 64, 3),
        prefix="loras/erased",
    )
    with pytest.raises(ValueError, match=sentence) as error:
        training.run(None)
    assert "\n" not in str(error.value)


class Drawn:
    """A live picture that the host has no memory for, the first time or always."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.calls = error, 0

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        raise self.error("no memory")


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, MemoryError])
def test_a_live_picture_without_memory_is_given_up(pack: ModuleType, error: type) -> None:
    draw = Drawn(error)
    progress = pack.nodes.progress.Progress(None, "unlearning cat", draw)
    for step in (1, 2, 3):
        progress.step(step, 3, 0.5, None)
    assert draw.calls == 1
    assert "no memory for a live picture" in progress.what


def test_a_cancel_while_a_live_picture_is_drawn_goes_through(pack: ModuleType) -> None:
    from comfy.model_management import InterruptProcessingException

    progress = pack.nodes.progress.Progress(None, "", Drawn(InterruptProcessingException))
    with pytest.raises(InterruptProcessingException):
        progress.step(1, 3, 0.5, None)


def test_a_folder_that_cannot_be_written_to_is_named_before_any_work(
    pack: ModuleType, parts: tuple
) -> None:
    import folder_paths

    taken = Path(folder_paths.get_output_directory()) / "taken"
    taken.parent.mkdir(parents=True, exist_ok=True)
    taken.write_text("a file")
    training = a_training(pack, parts, "taken/below")
    with pytest.raises(ValueError, match="choose another filename_prefix"):
        training.run(None)


def a_training(
    pack: ModuleType, parts: tuple, prefix: str, train: Callable[..., Any] | None = None
) -> Any:
    """A run of few-shot unlearning with another way to train. None: it must not begin."""
    return pack.nodes.training.TrainingRun(
        method=few_shot_that(pack, train or (lambda *_: pytest.fail("it began"))),
        concepts=["cat"],
        settings=pack.unlearn.methods.few_shot.FewShotSettings(trainable="mlp"),
        **dict(zip(("model", "clip", "vae"), parts)),
        size=64,
        prefix=prefix,
        verdict=False,
    )


def learnt(pack: ModuleType, value: float = 1.0) -> Any:
    """What a method would hand back."""
    return pack.unlearn.core.erasure.Erasure(
        {"a.weight": {"diff": torch.full((2, 2), value)}}, {"concepts": ["cat"], "loss": [1.0]}
    )


def test_what_cannot_be_written_is_handed_on(pack: ModuleType, parts: tuple) -> None:
    erasure = learnt(pack)
    training = a_training(pack, parts, "no_file", lambda *_: erasure)
    _, file, said = training.run(None)
    assert file.is_file()
    assert not said
    file.unlink()
    file.mkdir()
    found, kept, said = training.run(None)
    assert torch.equal(found.delta("a.weight"), erasure.delta("a.weight"))
    assert kept is None
    assert said.startswith(f"Not kept: {file.name} cannot be written to output/no_file (")
    assert str(file.parent) not in said
    assert "The state of this run" not in said  # this method keeps none
    assert pack.nodes.results.described(kept) == "File: none, see above."


def test_what_is_taken_away_while_it_trains_is_handed_on(pack: ModuleType, parts: tuple) -> None:
    """The folder, in whose place there is then a file; and the file, once it is written."""
    import folder_paths

    erasure, output = learnt(pack), Path(folder_paths.get_output_directory())

    def train(*_: Any) -> Any:
        parent = output / "taken_away"
        parent.rmdir() if parent.exists() else None
        parent.touch()
        return erasure

    training = a_training(pack, parts, "taken_away/below", train)
    found, file, said = training.run(None)
    assert file is None
    assert said.startswith("Not kept: ")
    assert torch.equal(found.delta("a.weight"), erasure.delta("a.weight"))
    assert "cat.safetensors is gone" in pack.nodes.results.described(Path("cat.safetensors"))


def test_a_run_whose_result_the_disk_has_no_room_for_does_not_begin(
    pack: ModuleType, parts: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr(pack.unlearn.files.writing.shutil, "disk_usage", lambda _: usage)
    training = a_training(pack, parts, "no_room")
    with pytest.raises(ValueError, match=r"will take . MB in output/no_room and 1 MB are free"):
        training.run(None)


def test_changes_too_large_for_half_precision_are_kept_in_full(
    pack: ModuleType, parts: tuple
) -> None:
    training = a_training(pack, parts, "large", lambda *_: learnt(pack, 1e6))
    _, file, said = training.run(None)
    assert not said
    assert pack.unlearn.core.erasure.Erasure.load(file).delta("a.weight")[0, 0].item() == 1e6


def test_what_a_diverged_run_reached_is_told_to_be_lost_where_it_is(
    pack: ModuleType, parts: tuple
) -> None:
    training = a_training(pack, parts, "diverged", lambda *_: learnt(pack))
    _, file, _ = training.run(None)
    file.unlink()
    aside = file.with_name(f"{file.stem}_unfinished.safetensors")
    aside.mkdir()

    def diverges(*_: Any) -> None:
        error = pack.unlearn.core.edit.Diverged(float("nan"), 1, {}, [1.0])
        error.erasure = learnt(pack)
        raise error

    with pytest.raises(RuntimeError, match=r"What was reached after step 1 is lost: .* cannot be"):
        a_training(pack, parts, "diverged", diverges).run(None)


@pytest.mark.parametrize("concept", ["狐" * 80, "\N{FOX FACE}" * 60, "fox" * 100])
def test_long_names_in_any_writing_fit_into_a_files_name(pack: ModuleType, concept: str) -> None:
    files = pack.nodes.cache
    file, _ = files.erasure_file("loras/erased", [concept], "domain_correction", "0123456789")
    files.check_writable(file)
    assert len(file.name.encode()) < 160
    assert not list(file.parent.glob(".*")), "the trial is taken away"


def test_state_is_kept_every_minute_or_as_often_as_asked(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = pack.nodes.training
    monkeypatch.delenv(training.SAVE_EVERY, raising=False)
    assert training.save_every() == 60
    monkeypatch.setenv(training.SAVE_EVERY, "2.5")
    assert training.save_every() == 2.5
    monkeypatch.setenv(training.SAVE_EVERY, "often")
    with pytest.raises(ValueError, match="CONCEPT_UNLEARN_SAVE_EVERY is 'often'; set it to a num"):
        training.save_every()


def test_drawing_is_not_watched_for_mutations(pack: ModuleType, parts: tuple) -> None:
    """The watch costs two fifths of the time. Outside of drawing it stays, and so does any other
    mode."""
    from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

    class Other(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    backend, seen = pack.nodes.backend, []
    model = backend.model.ComfyModel(*parts, size=(32, 32))
    with torch.inference_mode(), Other() as other, model.training():
        hook = model.layers.register_forward_hook(
            lambda *_: seen.append(_get_current_dispatch_mode())
        )
        try:
            model.sample(["a cat"], 0, steps=2)
        finally:
            hook.remove()
        assert type(_get_current_dispatch_mode()).__name__ == backend.differentiable.WATCH
    assert seen
    assert all(mode is other for mode in seen)

"""Methods on a device that is not the CPU: every tensor is where it is needed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from elsewhere import elsewhere
from layouts import build
from small_probe import small_probe

import testbed.model.drawings
import testbed.model.pack

SIDE = 64  # pixels


def test_device_refuses_what_a_gpu_refuses(
    host: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = torch.arange(3.0)
    with elsewhere(monkeypatch) as device:
        theirs = ours.to(device)
        assert theirs.device == device
        assert torch.equal((theirs + 1).cpu(), ours + 1)
        assert (ours.sum() + theirs).device == device  # a single number may be on the CPU
        assert theirs[torch.tensor([0])].device == device  # so may an index
        with pytest.raises(RuntimeError):
            theirs + ours
        with pytest.raises(RuntimeError):
            ours[theirs.long()]
        with pytest.raises(RuntimeError):
            torch.randn(3, device=device, generator=torch.Generator())
        with pytest.raises(TypeError):
            theirs.numpy()


class Cut(Exception):
    """What ends a run before its time."""


def cut(step: int, *others: Any) -> None:
    if step == 2:
        raise Cut


# SD 1.5's network, one that reads a vector of the whole prompt, and two that are told which tokens
# are the prompt's own.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("sd15", "key_step"),
        ("sd15", "domain_correction"),
        ("flux", "key_step"),
        ("flux2", "domain_correction"),
        ("ltxv", "key_step"),
    ],
)
def test_image_network_is_trained_and_a_run_resumed_there(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, method: str
) -> None:
    monkeypatch.setattr(pack.unlearn.methods.parts.retention.RetentionSet, "COUNT", 4)
    methods = getattr(pack.unlearn.methods, method)
    settings = (
        methods.KeyStepSettings(steps=6, start=2, iterations=4)
        if method == "key_step"
        else methods.DomainCorrectionSettings(pictures=2, iterations=4, alone=1, batch=2)
    )
    resume = partial(pack.unlearn.core.resume.Resume, tmp_path / "state", every=0.0)
    with elsewhere(monkeypatch) as device, torch.inference_mode():
        loaded = build(name)
        model = pack.nodes.backend.model.ComfyModel(loaded.model, loaded.clip, None, (SIDE, SIDE))
        with model.training():
            assert {weight.device for weight in model.layers.parameters()} == {device}
            train = partial(getattr(methods, method), model, ["cat"], settings)
            with pytest.raises(Cut):
                train(cut, resume())
            assert resume().load()
            erasure = train(None, resume())
        assert erasure.norm() > 0
        pack.nodes.backend.apply.erased_model(loaded.model, erasure)


# IconCanvas draws and sees pictures, too.


def host_model(pack: ModuleType, *parts: Any) -> Any:
    return pack.nodes.backend.model.ComfyModel(*parts, size=(SIDE, SIDE))


@pytest.mark.slow
def test_text_encoder_is_trained_and_probed_there(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_shot, shots = pack.unlearn.methods.few_shot, testbed.model.drawings.of("fox")[:4]
    with elsewhere(monkeypatch) as device, torch.inference_mode():
        model, clip, vae = testbed.model.pack.checkpoint()
        original = host_model(pack, model, clip, vae)
        assert original.device == device
        with original.training():
            settings = few_shot.FewShotSettings(max_steps=2, harden=0.1)
            erasure = few_shot.few_shot(original, ["fox"], shots, settings)
            record = pack.unlearn.evaluate.classifier.identify(
                original, shots, ["fox", "cat"], draws=8
            )
        assert erasure.norm() > 0
        assert {word.word for word in record.words} == {"fox", "cat"}
        edited = host_model(pack, *pack.nodes.backend.apply.erased(model, clip, erasure), vae)
        found = pack.unlearn.evaluate.probe.probe(
            original.training, edited.training, "fox", frozenset({"encoder"}), small_probe(pack)
        )
        assert {one.name for one in found.asked if one.is_attack} == set(
            pack.unlearn.evaluate.probe.ATTACKS
        )


@pytest.mark.slow
def test_the_papers_modes_run_there(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With pictures that are flipped, resized, encoded and drawn there."""
    methods = pack.unlearn.methods
    with elsewhere(monkeypatch) as device, torch.inference_mode():
        original = host_model(pack, *testbed.model.pack.checkpoint())
        assert original.device == device
        with original.training():
            few = methods.few_shot.FewShotSettings(mode="paper", epochs=1, shots=2)
            key = methods.key_step.KeyStepSettings(
                mode="paper", steps=6, start=4, iterations=2, augment=1.0, precision="bfloat16"
            )
            domain = methods.domain_correction.DomainCorrectionSettings(
                mode="paper", pictures=2, iterations=2, alone=1, batch=2, as_released=True
            )
            for erasure in (
                methods.few_shot.few_shot(original, ["fox"], None, few),
                methods.key_step.key_step(original, ["fox"], key),
                methods.domain_correction.domain_correction(original, ["fox"], domain),
            ):
                assert 0 < erasure.norm() < torch.inf


def values(weight: torch.Tensor) -> torch.Tensor:
    """A copy; what the checkpoint lacks is uninitialised memory, which may be no number."""
    return weight.to("cpu", torch.float32, copy=True).nan_to_num()


@pytest.mark.slow
def test_model_that_does_not_fit_is_trained_there(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host then leaves most weights on the CPU, and unloads the network for the autoencoder."""
    import comfy.model_management as management

    few_shot, key_step, shots = (
        pack.unlearn.methods.few_shot,
        pack.unlearn.methods.key_step,
        testbed.model.drawings.of("fox")[:4],
    )
    monkeypatch.setattr(pack.unlearn.methods.parts.retention.RetentionSet, "COUNT", 4)
    free = int(management.minimum_inference_memory()) + 12 * 2**20
    with elsewhere(monkeypatch), torch.inference_mode():
        monkeypatch.setattr(
            management,
            "get_free_memory",
            lambda device=None, torch_free_too=False: (free, free) if torch_free_too else free,
        )
        model, clip, vae = testbed.model.pack.checkpoint()
        modules = model.model, clip.cond_stage_model
        before = [values(weight) for m in modules for weight in m.state_dict().values()]
        host = host_model(pack, model, clip, vae)
        with host.training():
            places = {weight.device.type for weight in host.layers.parameters()}
            assert places == {"cpu", "lazy"}
            erasures = [
                few_shot.few_shot(host, ["fox"], shots, few_shot.FewShotSettings(max_steps=2)),
                key_step.key_step(
                    host, ["fox"], key_step.KeyStepSettings(steps=4, start=2, iterations=2)
                ),
            ]
        assert all(erasure.norm() > 0 for erasure in erasures)
        after = [values(weight) for m in modules for weight in m.state_dict().values()]
        assert all(map(torch.equal, after, before))
        assert not any(
            getattr(m, "weight_function", []) for root in modules for m in root.modules()
        )
        assert not model.weight_wrapper_patches
        host.sample(["a photo of a fox"], seed=0, steps=2)


class Card:
    """A card with so many bytes, of which the models' weights take what lies there."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, device: torch.device, *modules: torch.nn.Module
    ) -> None:
        import comfy.model_management as management

        self.device = device
        self.weights = [module.parameters for module in modules]
        self.size = self.whole = sum(weight.nbytes for some in self.weights for weight in some())
        monkeypatch.setattr(management, "get_free_memory", self._asked)
        monkeypatch.setattr(management, "minimum_inference_memory", lambda: 2**20)
        monkeypatch.setattr(management, "extra_reserved_memory", lambda: 0)

    def there(self) -> int:
        every = (weight for some in self.weights for weight in some())
        return sum(weight.nbytes for weight in every if weight.device == self.device)

    def free(self) -> int:
        return self.size - self.there()

    def _asked(self, device: Any = None, torch_free_too: bool = False) -> Any:
        return (self.free(), self.free()) if torch_free_too else self.free()


@pytest.mark.slow
def test_room_is_made_beside_a_model_that_does_not_fit(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host fills a card with weights; a run then has more of them fetched when used."""
    few_shot, shots = pack.unlearn.methods.few_shot, testbed.model.drawings.of("fox")[:2]
    with elsewhere(monkeypatch) as device, torch.inference_mode():
        model, clip, vae = testbed.model.pack.checkpoint()
        card = Card(monkeypatch, device, model.model, clip.cond_stage_model)
        card.size = int(0.9 * card.whole)
        host = host_model(pack, model, clip, vae)
        host.residency.load()
        before = card.there()
        planned = host.prepare("encoder", "mlp-final-attn", 4, batch=1, prompts=2)
        assert planned.checkpointing
        assert host.checkpointing
        assert card.there() < before
        assert card.free() >= planned.activations + planned.state
        with host.training():
            settings = few_shot.FewShotSettings(max_steps=1, rank=4, batch=1)
            assert few_shot.few_shot(host, ["fox"], shots, settings).norm() > 0
        with pytest.raises(MemoryError, match="use smaller images"):
            host.prepare("encoder", "all", 0, batch=64, prompts=64)
        # Then all is as it was, and a smaller run finds its place.
        assert host.residency.is_loaded()
        host.prepare("encoder", "mlp-final-attn", 4, batch=1, prompts=2)


@pytest.mark.slow
def test_room_is_made_for_what_the_classifier_asks_at_once(
    pack: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with elsewhere(monkeypatch) as device, torch.inference_mode():
        model, clip, vae = testbed.model.pack.checkpoint()
        asked = int(model.model.memory_required((64, 4, SIDE // 8, SIDE // 8)))
        card = Card(monkeypatch, device, model.model, clip.cond_stage_model)
        card.size = asked + int(0.9 * card.whole)
        host = host_model(pack, model, clip, vae)
        host.residency.load()
        assert card.free() < asked
        host.prepare_asking()
        assert card.free() >= asked
        with host.training():
            shots = testbed.model.drawings.of("fox")[:2]
            found = pack.unlearn.evaluate.classifier.identify(host, shots, ["fox", "cat"], draws=8)
            assert card.free() >= asked  # also after the encoder has been used, and the autoencoder
            host.sample(["a photo of a fox"], seed=0, steps=2)
            assert card.free() >= asked
        assert {word.word for word in found.words} == {"fox", "cat"}
        card.size = card.whole // 2  # too small: the models are loaded as they would be without it
        small = host_model(pack, model, clip, vae)
        small.prepare_asking()
        small.sample(["a photo of a fox"], seed=0, steps=2)

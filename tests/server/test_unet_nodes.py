"""The two nodes that tune the network, in a real server's queue, and what their files do there.

All of it draws latents, and "the same" means the same bits unless a rounding is named.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import cached, distance, drawn, files, latents, loader, node, steps_of, text
from safetensors.torch import load_file, save_file

from testbed.host.server import Progress, PromptError, Server
from testbed.model.checkpoint import WEIGHTS
from unlearn.core.erasure import Erasure, full, parse

CONCEPT = "mushroom"
STEPS = 4
METHODS = ("key_step", "domain_correction")
FC1 = "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
UNET = "model.diffusion_model."
LAST_OF_FP16 = 2**-10  # what rounding to half precision may change, relative to a value

each_method = pytest.mark.parametrize("method", METHODS)
one_method_by_default = pytest.mark.parametrize(
    "method", ["key_step", pytest.param("domain_correction", marks=pytest.mark.slow)]
)


def unlearn(method: str, **inputs: Any) -> dict[str, Any]:
    """A training node that takes a few steps: ["...", 0] is the erased MODEL, ["...", 1] the
    erasure."""
    values = {
        "model": ["base", 0],
        "clip": ["base", 1],
        "concept": CONCEPT,
        "size": 64,
        "mode": "balanced",
        "rank": 0,
        "seed": 0,
        "iterations": STEPS,
        "filename_prefix": f"loras/{method}",
        "verdict": False,  # tests/comfy/test_verdict_nodes.py
    }
    if method == "key_step":
        own = {
            "task": "object",
            "steps": 6,
            "key_steps": "from start",
            "start": 2,
            "trainable": "by task",
        }
        return node("KeyStepUNetUnlearn", **{**values, **own, **inputs})
    own = {"kind": "object", "pictures": 2}
    return node("DomainCorrectionUNetUnlearn", **{**values, **own, **inputs})


def quick(method: str, **inputs: Any) -> dict[str, Any]:
    """Of mode paper, which draws no other prompts first; two steps."""
    own = {"task": "style"} if method == "key_step" else {"pictures": 1}
    return unlearn(method, mode="paper", iterations=2, **{**own, **inputs})


def load(name: str, model: tuple[str, int] = ("base", 0), strength: float = 1.0) -> dict[str, Any]:
    return node("LoadErasedModel", model=list(model), erasure_name=name, strength=strength)


def stock(name: str, model: tuple[str, int] = ("base", 0), strength: float = 1.0) -> dict[str, Any]:
    return node("LoraLoaderModelOnly", model=list(model), lora_name=name, strength_model=strength)


def sampled_again(server: Server) -> torch.Tensor:
    """What the original MODEL and CLIP draw now, the checkpoint being the one still loaded."""
    history = server.run(loader() | latents("again"))
    assert "again.sample" not in cached(history)
    return drawn(server, history, "again")


@dataclass
class Training:
    """Both methods, once for all tests here."""

    prompt: dict[str, Any]
    history: dict[str, Any]
    events: list[Progress]
    plain: torch.Tensor
    """By the original model, before anything was trained."""
    names: dict[str, str]
    """By method: its erasure as the loaders list it."""
    erased: dict[str, torch.Tensor]
    """By method: drawn by the node's own MODEL."""

    def record(self, server: Server, method: str) -> dict[str, Any]:
        return dict(Erasure.load(server.output / "loras" / self.names[method]).record)

    def assert_like(self, picture: torch.Tensor, method: str) -> None:
        """Drawn by the erased model, but for the rounding of its file to half precision."""
        effect = distance(self.erased[method], self.plain)
        assert distance(picture, self.erased[method]) < 20 * LAST_OF_FP16 * effect


@pytest.fixture(scope="module")
def training(server: Server) -> Training:
    plain = drawn(server, server.run(loader() | latents("plain")), "plain")
    prompt = loader() | latents("original")
    for method in METHODS:
        prompt |= {method: unlearn(method, vae=["base", 2])} | latents(f"by {method}", (method, 0))
    # As by another branch of the graph: what it needs is not drawn yet.
    prompt["original.sample"]["inputs"]["steps"] = 5
    events: list[Progress] = []
    history = server.run(prompt, on_progress=events.append)
    names, erased = {}, {}
    for method in METHODS:
        (file,) = (server.output / "loras" / method).iterdir()
        names[method] = f"{method}/{file.name}"
        erased[method] = drawn(server, history, f"by {method}")
    return Training(prompt, history, events, plain, names, erased)


# Training


@each_method
def test_training_reports_every_step_with_a_live_picture(training: Training, method: str) -> None:
    events = [event for event in training.events if event.node == method]
    assert steps_of(events, method) == list(range(1, STEPS + 1))
    assert [e for e in events if e.preview], "a VAE is connected"
    assert any(
        f"unlearning {CONCEPT}\nerasing: step {STEPS} of at most {STEPS}, loss " in (e.text or "")
        for e in events
    )


@each_method
def test_the_erased_model_draws_something_else(training: Training, method: str) -> None:
    assert distance(training.erased[method], training.plain) > 0.01


def test_other_branches_draw_as_before(server: Server, training: Training) -> None:
    """In the prompt that trained, and afterwards with what is still loaded from it."""
    assert torch.equal(sampled_again(server), training.plain)
    prompt = loader() | latents("original")
    prompt["original.sample"]["inputs"]["steps"] = 5
    history = server.run(prompt)
    assert "original.sample" not in cached(history)
    assert torch.equal(
        drawn(server, history, "original"), drawn(server, training.history, "original")
    )


@each_method
def test_queueing_twice_trains_once(server: Server, training: Training, method: str) -> None:
    server.run(training.prompt)  # other tests may have made the server forget it
    events: list[Progress] = []
    history = server.run(training.prompt, on_progress=events.append)
    assert {"base", method} <= cached(history)
    assert not [e for e in events if e.node == method and (e.total > 1 or e.preview)]


@each_method
def test_forgotten_result_is_read_from_its_file(
    server: Server, training: Training, method: str
) -> None:
    before = {file: file.stat().st_mtime_ns for file in files(server.output / "loras")}
    server.free()
    time.sleep(1)  # the server frees between two prompts
    # A VAE is for looking on alone: without one it is the same training.
    graph = loader() | {method: unlearn(method)} | latents("read", (method, 0))
    history = server.run(graph)
    assert text(history, method).startswith("Trained before with these inputs")
    assert {file: file.stat().st_mtime_ns for file in files(server.output / "loras")} == before
    training.assert_like(drawn(server, history, "read"), method)


# The file


@each_method
def test_stock_loader_and_ours_do_what_training_did(
    server: Server, training: Training, method: str
) -> None:
    name = training.names[method]
    graph = loader() | {"ours": load(name), "stock": stock(name)}
    history = server.run(
        graph | latents("by ours", ("ours", 0)) | latents("by stock", ("stock", 0))
    )
    by_ours = drawn(server, history, "by ours")
    assert torch.equal(drawn(server, history, "by stock"), by_ours)
    training.assert_like(by_ours, method)


@each_method
def test_strength_zero_is_the_original_and_minus_one_undoes(
    server: Server, training: Training, method: str
) -> None:
    name = training.names[method]
    graph = loader() | {
        "off": load(name, strength=0.0),
        "on": load(name),
        "undone": load(name, ("on", 0), -1.0),
        "by stock": stock(name, ("on", 0), -1.0),
    }
    history = server.run(
        graph
        | latents("zero", ("off", 0))
        | latents("restored", ("undone", 0))
        | latents("restored by stock", ("by stock", 0))
    )
    assert torch.equal(drawn(server, history, "zero"), training.plain)
    effect = distance(training.erased[method], training.plain)
    for way in ("restored", "restored by stock"):
        assert distance(drawn(server, history, way), training.plain) < 1e-3 * effect


def test_two_erasures_stack_in_either_order(server: Server, training: Training) -> None:
    one, two = (training.names[method] for method in METHODS)
    graph = loader() | {
        "one": load(one),
        "then two": load(two, ("one", 0)),
        "two": load(two),
        "then one": load(one, ("two", 0)),
        "both": node(
            "CombineErasedCLIP",
            clip=["base", 1],
            model=["base", 0],
            erasure_1=["one", 1],
            erasure_2=["two", 1],
        ),
    }
    orders = {"one, two": ("then two", 0), "two, one": ("then one", 0), "at once": ("both", 3)}
    for name, model in orders.items():
        graph |= latents(name, model)
    history = server.run(graph)
    first, second, at_once = (drawn(server, history, name) for name in orders)
    for method in METHODS:
        effect = distance(first, training.erased[method])
        assert effect > 0.005, "each adds something to the other"
        assert distance(first, second) < 1e-3 * effect
        assert distance(first, at_once) < 1e-3 * effect
    assert text(history, "both").count(f"{CONCEPT}: ") == 2, "what is left of each is reported"


def test_low_rank_erasure_of_linear_and_convolution_weights_round_trips(
    server: Server, training: Training
) -> None:
    prefix = "loras/low_rank"
    erasing = quick("key_step", task="object", rank=4, filename_prefix=prefix)
    trained = server.run(loader() | {"low": erasing} | latents("trained", ("low", 0)))
    (file,) = (server.output / prefix).iterdir()
    deltas = Erasure.load(file).deltas
    low = {key: delta for key, delta in deltas.items() if "lora_up" in delta}
    assert all(delta["lora_up"].shape[1] == 4 == len(delta["lora_down"]) for delta in low.values())
    kinds = {tuple(weight.shape[2:]) for weight in checkpoint_weights(low).values()}
    assert kinds == {(), (1, 1), (3, 3)}
    name = f"low_rank/{file.name}"
    graph = loader() | {"ours": load(name), "stock": stock(name)}
    history = server.run(
        graph | latents("by ours", ("ours", 0)) | latents("by stock", ("stock", 0))
    )
    by_ours, by_training = drawn(server, history, "by ours"), drawn(server, trained, "trained")
    assert torch.equal(drawn(server, history, "by stock"), by_ours)
    effect = distance(by_training, training.plain)
    assert effect > 0
    assert distance(by_ours, by_training) < 20 * LAST_OF_FP16 * effect


def checkpoint_weights(keys: Any) -> dict[str, torch.Tensor]:
    """Of the test model, by the host's names."""
    weights = load_file(WEIGHTS)
    return {key: weights["model." + key] for key in keys}


def test_encoder_and_network_in_one_file_reach_both(server: Server, training: Training) -> None:
    noise = torch.randn(768, 192, generator=torch.Generator().manual_seed(0))
    encoders = server.output / "loras" / "encoder.safetensors"
    Erasure({FC1: {"diff": 0.05 * noise}}, {"concepts": ["owl"]}).save(encoders)
    graph = loader() | {
        "encoder": node(
            "LoadErasedCLIP", clip=["base", 1], erasure_name=encoders.name, strength=1.0
        ),
        "network": load(training.names["key_step"]),
        "both": node(
            "CombineErasedCLIP",
            clip=["base", 1],
            model=["base", 0],
            erasure_1=["encoder", 1],
            erasure_2=["network", 1],
        ),
        "save": node(
            "SaveErasedModel",
            erasure=["both", 1],
            filename_prefix="loras/combined",
            precision="float16",
        ),
    }
    history = server.run(
        graph
        | latents("wanted", ("network", 0), ("encoder", 0))
        | latents("encoder alone", ("base", 0), ("encoder", 0))
        | latents("combined", ("both", 3), ("both", 0))
    )
    wanted = drawn(server, history, "wanted")
    assert torch.equal(drawn(server, history, "combined"), wanted)
    report = text(history, "both")
    assert "owl: moves 100% as far as alone, 100% in the same direction" in report
    assert f"{CONCEPT}: 100% of its change of the model is left beside the others" in report

    (file,) = (server.output / "loras").glob("combined_*.safetensors")
    assert Erasure.load(file).concepts == ["owl", CONCEPT]
    stock_loader = node(
        "LoraLoader",
        model=["base", 0],
        clip=["base", 1],
        lora_name=file.name,
        strength_model=1.0,
        strength_clip=1.0,
    )
    graph = loader() | {
        "clip": node("LoadErasedCLIP", clip=["base", 1], erasure_name=file.name, strength=1.0),
        "model": load(file.name),
        "stock": stock_loader,
    }
    again = server.run(
        graph
        | latents("model alone", ("model", 0))
        | latents("clip alone", ("base", 0), ("clip", 0))
        | latents("by ours", ("model", 0), ("clip", 0))
        | latents("by stock", ("stock", 0), ("stock", 1))
    )
    assert torch.equal(drawn(server, again, "by ours"), wanted)
    assert torch.equal(drawn(server, again, "by stock"), wanted)
    training.assert_like(drawn(server, again, "model alone"), "key_step")
    clip_alone = drawn(server, again, "clip alone")
    assert torch.equal(clip_alone, drawn(server, history, "encoder alone"))
    assert distance(clip_alone, training.plain) > 0.005
    assert distance(clip_alone, wanted) > 0.005


# A LoRA before the training node


@pytest.fixture(scope="module")
def lora(server: Server) -> str:
    """A LoRA of rank 2 on every cross-attention and on a convolution, as the loaders list it."""
    generator = torch.Generator().manual_seed(0)
    base = load_file(WEIGHTS)
    tensors = {}
    for key, weight in base.items():
        if key.startswith(UNET) and key.endswith((".attn2.to_q.weight", ".9.0.in_layers.2.weight")):
            name = key.removeprefix("model.").removesuffix(".weight")
            rows, columns = weight.shape[0], weight.shape[1:]
            up = torch.randn(rows, 2, *[1] * (len(columns) - 1), generator=generator)
            tensors[f"{name}.lora_up.weight"] = 0.05 * up
            tensors[f"{name}.lora_down.weight"] = torch.randn(2, *columns, generator=generator)
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    file = server.output / "loras" / "style.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file(tensors, file)
    return file.name


@one_method_by_default
def test_lora_loaded_before_stays_and_the_erasure_holds_none_of_it(
    server: Server, training: Training, lora: str, method: str
) -> None:
    prefix = f"loras/on_lora/{method}"
    graph = loader() | {
        "lora": stock(lora),
        "unlearn": quick(method, model=["lora", 0], filename_prefix=prefix),
    }
    history = server.run(
        graph | latents("with lora", ("lora", 0)) | latents("erased", ("unlearn", 0))
    )
    with_lora, erased = (drawn(server, history, name) for name in ("with lora", "erased"))
    (file,) = (server.output / prefix).iterdir()
    erasure = Erasure.load(file)
    # Two of the paper's steps change little beside the LoRA.
    assert 0 < distance(erased, with_lora) < 0.1 * distance(with_lora, training.plain)
    assert all(".attn2." in key for key in erasure.deltas), "of the LoRA's convolution nothing"
    of_lora = parse(load_file(server.output / "loras" / lora))
    for key in erasure.deltas.keys() & of_lora.keys():
        assert erasure.delta(key).norm() < 0.01 * full(of_lora[key]).norm()

    name = f"on_lora/{method}/{file.name}"
    graph = loader() | {
        "lora": stock(lora),
        "lora first": load(name, ("lora", 0)),
        "first": load(name),
        "lora last": stock(lora, ("first", 0)),
    }
    again = server.run(
        graph
        | latents("after it", ("lora first", 0))
        | latents("before it", ("lora last", 0))
        | {"said": node("PreviewAny", source=["first", 2])}
    )
    effect = distance(erased, with_lora)
    for way in ("after it", "before it"):
        assert distance(drawn(server, again, way), erased) < 0.1 * effect
    assert "Warning" not in text(again, "first"), "the checkpoint itself is its base"
    assert torch.equal(sampled_again(server), training.plain)


@pytest.mark.slow
def test_another_lora_or_none_is_trained_anew(
    server: Server, training: Training, lora: str
) -> None:
    prefix = "loras/anew"
    models = {"none": ("base", 0), "lora": ("lora", 0), "weaker": ("weaker", 0)}
    graph = loader() | {"lora": stock(lora), "weaker": stock(lora, strength=0.5)}
    for name, model in models.items():
        graph[f"on {name}"] = quick("key_step", model=list(model), filename_prefix=prefix)
        graph[f"show {name}"] = node("PreviewAny", source=[f"on {name}", 4])
    server.run(graph)
    assert len(list((server.output / prefix).iterdir())) == len(models)


# Bad input


BAD = [
    pytest.param({"concept": " , "}, "No concept is named", id="no concept"),
    pytest.param(
        {"anchor": "Mushroom "},
        "The anchor 'Mushroom' is the concept itself, so nothing would change",
        id="anchor",
    ),
    pytest.param(
        {"concept": "cat, owl", "anchor": "owl"},
        "The anchor 'owl' is the concept itself",
        id="anchor of several",
    ),
    pytest.param({"filename_prefix": "../outside"}, "leaves ComfyUI's output folder", id="outside"),
]


def refusal(server: Server, graph: dict[str, Any]) -> PromptError:
    """What a prompt is refused with; it must have changed no file."""
    before = files(server.output.parent / "output")
    with pytest.raises(PromptError) as error:
        server.run(graph | {"show": node("PreviewAny", source=["unlearn", 4])})
    assert "\n" not in str(error.value)
    assert error.value.node_id == "unlearn"
    assert files(server.output.parent / "output") == before
    assert not list(server.output.parent.glob("outside*"))
    return error.value


@each_method
@pytest.mark.parametrize(("inputs", "sentence"), BAD)
def test_bad_input_gets_a_sentence_and_writes_nothing(
    server: Server, method: str, inputs: dict[str, Any], sentence: str
) -> None:
    assert sentence in str(refusal(server, loader() | {"unlearn": unlearn(method, **inputs)}))


@pytest.mark.parametrize("start", [6, 999])
def test_first_key_step_beyond_the_last_gets_a_sentence(server: Server, start: int) -> None:
    error = refusal(server, loader() | {"unlearn": unlearn("key_step", start=start)})
    assert f"The first key step is {start}, but a trajectory of 6 steps has steps 0 to 5" in str(
        error
    )


@each_method
def test_checkpoint_without_a_text_encoder_gets_a_sentence(server: Server, method: str) -> None:
    base = load_file(WEIGHTS)
    file = server.output / "checkpoints" / "network_alone.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file({key: value for key, value in base.items() if key.startswith(UNET)}, file)
    error = refusal(server, loader(file.name) | {"unlearn": unlearn(method)})
    assert "its checkpoint holds no text encoder" in str(error)


def test_bad_input_changes_nothing(server: Server, training: Training) -> None:
    for method in METHODS:
        refusal(server, loader() | {"unlearn": unlearn(method, anchor=CONCEPT)})
    assert torch.equal(sampled_again(server), training.plain)


def an_encoders(file: Path) -> None:
    Erasure({FC1: {"diff": torch.zeros(768, 192)}}, {"concepts": ["owl"]}).save(file)


def another_size(file: Path) -> None:
    key = "diffusion_model.input_blocks.0.0.weight"
    Erasure({key: {"diff": torch.zeros(320, 4, 3, 3)}}, {"concepts": ["owl"]}).save(file)


def another_network(file: Path) -> None:
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    Erasure({key: {"diff": torch.zeros(4, 4)}}, {"concepts": ["owl"]}).save(file)


def no_erasure(file: Path) -> None:
    save_file({"decoder.conv_in.weight": torch.zeros(4, 4)}, file)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (an_encoders, "changes nothing in the model; use Load Erased CLIP for it"),
        (another_size, "is for a model of another size"),
        (another_network, "is for another model: this one has no diffusion_model.double_blocks"),
        (no_erasure, "is not an erasure of this pack"),
    ],
)
def test_unusable_file_stops_the_prompt_with_one_sentence(
    server: Server, make: Any, sentence: str
) -> None:
    file = server.output / "loras" / "bad_model.safetensors"
    file.parent.mkdir(exist_ok=True)
    make(file)
    with pytest.raises(PromptError) as error:
        server.run(loader() | {"erased": load(file.name)} | latents("bad", ("erased", 0)))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.node_type == "LoadErasedModel"

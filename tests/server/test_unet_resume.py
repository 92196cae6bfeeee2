"""Long runs of the network's methods on a server that is killed, cancelled and made to fail.

The server keeps the state of a run after every step, so that little has to be run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SUPPORT
from graphs import cached, drawn, latents, loader, node, steps_of, text
from safetensors.torch import load_file, save_file
from test_unet_nodes import STEPS, UNET, each_method, one_method_by_default, quick, stock, unlearn

from testbed.host.server import Interrupted, Progress, PromptError, Server, ServerError, extended


class Fragile(Server):
    """A server whose runs are cut short; each is started again in the same folders."""

    def restart(self) -> None:
        self.stop()
        self.__enter__()


def states(server: Server, prefix: str) -> dict[str, Path]:
    """What runs have left to go on from, by the ending of their names."""
    found = (server.output / prefix).rglob("[!.]*.resume*")
    return {file.name.partition(".")[2]: file for file in found}


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fragile]:
    folder = tmp_path_factory.mktemp("fragile")
    args = extended(folder, SUPPORT / "small_runs")
    with Fragile(folder, args=args, environment={"CONCEPT_UNLEARN_SAVE_EVERY": "0"}) as running:
        yield running


@pytest.fixture(scope="module")
def plain(server: Server) -> torch.Tensor:
    """By the original model, before anything was trained here."""
    return drawn(server, server.run(loader() | latents("plain")), "plain")


@pytest.fixture(scope="module")
def uninterrupted(server: Server) -> Callable[[str], dict[str, torch.Tensor]]:
    """By method: what a server learns in one go; test_unet_nodes.py may have let it learn that."""

    @cache
    def learn(method: str) -> dict[str, torch.Tensor]:
        if (server.output / "loras" / method).is_dir():
            return learnt(server, method)
        server.run(training(method, filename_prefix=f"loras/whole/{method}"))
        return learnt(server, f"whole/{method}")

    return learn


def learnt(server: Server, folder: str) -> dict[str, torch.Tensor]:
    (file,) = (server.output / "loras" / folder).glob("*.safetensors")
    return load_file(file)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def steps(events: list[Progress]) -> list[int]:
    return steps_of(events, "unlearn")


def training(method: str, **inputs: Any) -> dict[str, Any]:
    return loader() | {
        "unlearn": unlearn(method, **inputs),
        "show": node("PreviewAny", source=["unlearn", 4]),
    }


def assert_untouched(server: Server, plain: torch.Tensor) -> None:
    """The original MODEL and CLIP, still loaded from before, draw what they drew."""
    server.run(loader() | latents("other", prompt=""))  # and it is not remembered
    history = server.run(loader() | latents("again"))
    assert "base" in cached(history)
    assert "again.sample" not in cached(history)
    assert torch.equal(drawn(server, history, "again"), plain)


@pytest.mark.slow
@each_method
def test_run_goes_on_after_the_server_was_killed(
    fragile: Fragile, uninterrupted: Callable, method: str
) -> None:
    wanted = uninterrupted(method)
    before: list[Progress] = []

    def kill_at_two(event: Progress) -> None:
        before.append(event)
        if steps(before)[-1:] == [2]:
            fragile.kill()

    with pytest.raises(ServerError, match="The server died"):
        fragile.run(training(method), on_progress=kill_at_two)
    fragile.restart()
    left = states(fragile, "loras")
    assert set(left) == {
        "resume",
        "resume.held",
        *(["resume.anchors"] if method == "domain_correction" else []),
    }
    made = {name: file.stat().st_mtime_ns for name, file in left.items() if name != "resume"}

    after: list[Progress] = []

    def watch(event: Progress) -> None:
        if not steps(after):
            now = states(fragile, "loras")
            assert {name: now[name].stat().st_mtime_ns for name in made} == made, "drawn once"
        after.append(event)

    fragile.run(training(method), on_progress=watch)
    # The second step was reported just before its state was kept.
    assert steps(after) in (list(range(first, STEPS + 1)) for first in (2, 3))
    # Neither a state nor one that was being written as the server died.
    assert len(list((fragile.output / "loras" / method).iterdir())) == 1
    assert same(learnt(fragile, method), wanted)


@one_method_by_default
def test_cancelled_and_failed_runs_change_nothing_and_go_on(
    server: Server, plain: torch.Tensor, uninterrupted: Callable, method: str
) -> None:
    wanted, prefix = uninterrupted(method), f"loras/cut/{method}"
    graph = training(method, filename_prefix=prefix)
    events: list[Progress] = []

    def cancel_at_two(event: Progress) -> None:
        events.append(event)
        if steps(events)[-1:] == [2]:
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(graph, on_progress=cancel_at_two)
    done = steps(events)[-1]
    assert done < STEPS
    assert_untouched(server, plain)
    assert not list((server.output / prefix).glob("*.safetensors"))

    # Where the result is to be written there is now a folder: it is handed on all the same.
    state = states(server, prefix)["resume"]
    concept = state.stem.rpartition("_")[0]
    (state.with_name(f"{concept}.{method}.safetensors") / "something").mkdir(parents=True)
    events.clear()
    save = node("SaveErasedModel", erasure=["unlearn", 1], filename_prefix=f"{prefix}/mine")
    save["inputs"]["precision"] = "float16"
    erased = latents("erased", ("unlearn", 0)) | latents("original")
    history = server.run(graph | erased | {"save": save}, on_progress=events.append)
    assert steps(events)[0] in (done, done + 1)
    assert steps(events)[-1] == STEPS
    said = text(history, "unlearn")
    assert said.startswith("Not kept: ")
    assert f"cannot be written to output/{prefix}" in said
    assert "The state of this run is kept" in said
    assert str(server.output) not in said
    (file,) = (server.output / prefix).glob("mine*.safetensors")
    assert same(load_file(file), wanted)
    assert torch.equal(drawn(server, history, "original"), plain)
    assert not torch.equal(drawn(server, history, "erased"), plain)
    assert_untouched(server, plain)


@one_method_by_default
def test_loss_that_is_not_finite_from_the_start_keeps_nothing(
    server: Server, plain: torch.Tensor, method: str
) -> None:
    """As with a broken LoRA before the node."""
    key = "diffusion_model.output_blocks.9.0.in_layers.2.diff"
    broken = server.output / "loras" / "broken.safetensors"
    broken.parent.mkdir(exist_ok=True)
    save_file({key: torch.full((64, 192, 3, 3), 1e30)}, broken)
    prefix = f"loras/broken/{method}"
    graph = loader() | {
        "lora": stock(broken.name),
        "unlearn": quick(method, model=["lora", 0], filename_prefix=prefix),
        "show": node("PreviewAny", source=["unlearn", 4]),
    }
    with pytest.raises(PromptError, match="are NaN or infinite from the start") as error:
        server.run(graph)
    assert "nothing is kept" in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((server.output / "loras").glob(f"broken/{method}/*"))
    assert_untouched(server, plain)


@each_method
def test_checkpoint_without_cross_attention_gets_a_sentence(server: Server, method: str) -> None:
    base = load_file(server.host / "models" / "checkpoints" / "iconcanvas.safetensors")
    attention = re.compile(r"put_blocks\.\d+\.1\.(norm|proj|trans)|middle_block\.1\.")
    # What lies behind a block's attention moves up to its place.
    behind = re.compile(r"(output_blocks\.\d+|middle_block)\.2\.")
    file = server.output / "checkpoints" / "no_words.safetensors"
    file.parent.mkdir(exist_ok=True)
    save_file(
        {
            behind.sub(r"\1.1.", key): value
            for key, value in base.items()
            if key.startswith(UNET) and not attention.search(key)
        },
        file,
    )
    graph = loader() | {
        "deaf": node("CheckpointLoaderSimple", ckpt_name=file.name),
        "unlearn": unlearn(method, model=["deaf", 0]),
        "show": node("PreviewAny", source=["unlearn", 4]),
    }
    with pytest.raises(PromptError, match="This model has no cross-attention, so no prompt"):
        server.run(graph)
    del graph["unlearn"], graph["show"]
    server.run(graph | latents("drawn", ("deaf", 0)))  # the host can draw with it

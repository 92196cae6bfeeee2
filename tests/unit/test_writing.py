"""Results are written whole or not at all, and nothing is left lying about."""

from __future__ import annotations

import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from unlearn.cli.output import Failure, save
from unlearn.core.erasure import Erasure
from unlearn.core.resume import Resume
from unlearn.files import writing
from unlearn.files.writing import MARK, check_writable, whole_file, whole_folder

linux = pytest.mark.skipif(os.name == "nt", reason="the rights and signals of POSIX systems")


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def erasure(numbers: int = 10) -> Erasure:
    return Erasure({"a.weight": {"diff": torch.zeros(numbers, 10)}}, {"concepts": ["fox"]})


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: the system refuses to write more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(params=[0o022, 0o002, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@linux
def test_files_have_the_rights_that_the_user_gives_new_ones(tmp_path: Path, umask: int) -> None:
    file = tmp_path / "new" / "a.safetensors"
    erasure().save(file)
    assert mode(file) == 0o666 & ~umask
    with whole_folder(tmp_path / "folder") as new:
        (new / "below").mkdir()
        (new / "below" / "a").touch(mode=0o600)
    assert mode(tmp_path / "folder" / "below" / "a") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == 0o777 & ~umask


@linux
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    erasure().save(file)
    before = file.read_bytes()
    with files_of_at_most(1000), pytest.raises(writing.ERRORS) as error:
        erasure(1000).save(file)
    assert writing.reason(error.value) == "File too large"
    assert file.read_bytes() == before
    assert inside(tmp_path) == [file.name]


@pytest.mark.parametrize("kind", [whole_file, whole_folder])
def test_what_was_there_stays_until_the_new_is_whole(tmp_path: Path, kind) -> None:
    place = tmp_path / "place"
    for content in ("old", "new"):
        with kind(place) as new:
            inner = new / "inner" if kind is whole_folder else new
            inner.write_text(content)
    assert (place / "inner" if kind is whole_folder else place).read_text() == "new"
    with pytest.raises(KeyError), kind(place):
        raise KeyError
    assert (place / "inner" if kind is whole_folder else place).read_text() == "new"
    assert inside(tmp_path) == ["place"]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import unlearn.files.writing
with unlearn.files.writing.whole_file(Path(sys.argv[2])) as new:
    new.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@linux
def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    command = [sys.executable, "-c", KILLED, str(ROOT), str(file)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    (left,) = inside(tmp_path)
    assert left.startswith(MARK)
    check_writable(file)
    assert inside(tmp_path) == []


def test_what_others_are_writing_stays(tmp_path: Path) -> None:
    """Another process of this machine, one of another machine, and what is none of ours."""
    with whole_file(tmp_path / "a") as new:
        new.write_text("a")
        names = [f"{MARK}0123abcd-1-x", f"{MARK}notes", ".other.1.tmp"]
        for name in names:
            (tmp_path / name).mkdir()
        check_writable(tmp_path / "b")
        assert new.exists()
    assert inside(tmp_path) == sorted(["a", *names])


def test_a_look_at_a_folder_leaves_nothing_there(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "yet" / "a.safetensors")
    assert inside(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        check_writable(tmp_path / "file" / "a.safetensors")


@linux
def test_a_state_leaves_room_for_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not tried again at every step where there is none."""
    state = {"x": torch.zeros(1000)}
    resume = Resume(tmp_path / "run.resume", every=0)
    resume.reserved = 10_000
    usage = type("usage", (), {"free": 13_000})
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda _: usage)
    resume.offer(lambda: state)
    assert not resume.began()
    assert resume.failed == "No space left on device"
    usage.free = 14_000
    again = Resume(tmp_path / "run.resume", every=0)
    again.reserved = 10_000
    again.offer(lambda: state)
    assert again.began()
    assert not again.failed


@linux
def test_what_a_command_trained_is_kept_somewhere(tmp_path: Path) -> None:
    blocked = tmp_path / "a.safetensors"
    blocked.mkdir()
    with pytest.raises(Failure, match=r"cannot be written \(Is a directory\); the erasure is in"):
        save(erasure(), blocked, torch.float16)


@linux
def test_changes_too_large_for_half_precision_are_kept_in_full(tmp_path: Path) -> None:
    large = Erasure({"a.weight": {"diff": torch.full((2, 2), 1e6)}}, {"concepts": ["fox"]})
    with pytest.raises(Failure, match="the erasure is in") as error:
        save(large, tmp_path / "a.safetensors", torch.float16)
    kept = Path(str(error.value).rpartition("the erasure is in ")[2].removesuffix("."))
    assert Erasure.load(kept).delta("a.weight")[0, 0].item() == 1e6
    kept.unlink()
    kept.parent.rmdir()


@linux
def test_where_nothing_can_be_written_the_loss_is_told(tmp_path: Path) -> None:
    with files_of_at_most(100), pytest.raises(Failure, match="the training is lost"):
        save(erasure(1000), tmp_path / "a.safetensors", torch.float16)

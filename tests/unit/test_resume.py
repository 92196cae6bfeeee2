"""Resume and Run: what a cut-short run leaves behind, and how the next one goes on from it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from unlearn.core.edit import Diverged, Edit
from unlearn.core.resume import Resume, Run

STATE = {
    "more": {"number": 3, "left": [0.5, 0.25], "sentences": ["a photo of a {}"]},
    "edit": {"parameters": [torch.tensor([1.5, -2.0])], "history": [0.1, 0.2]},
    "rng": random.Random(0).getstate(),
}


def untouched() -> dict:
    raise AssertionError("the state was asked for")


# The file


def test_a_state_is_kept_only_when_it_is_due(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "run", every=3600)
    resume.offer(untouched)
    assert not list(tmp_path.iterdir())
    resume.saved -= 3600  # an hour goes by
    resume.offer(lambda: STATE)
    assert resume.load() is not None
    resume.offer(untouched)


def test_with_every_zero_each_offer_is_kept(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "run", every=0)
    for number in range(3):
        resume.offer(lambda n=number: {"number": n})
        assert resume.load() == {"number": number}
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_another_resume_of_the_same_file_reads_the_same(tmp_path: Path) -> None:
    Resume(tmp_path / "folder" / "run", every=0).offer(lambda: STATE)
    state = Resume(tmp_path / "folder" / "run").load()
    assert torch.equal(state["edit"].pop("parameters")[0], torch.tensor([1.5, -2.0]))
    assert state == {**STATE, "edit": {"history": [0.1, 0.2]}}


def test_it_knows_whether_anything_is_kept(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "run", every=0)
    assert not resume.began()
    (tmp_path / ".run.1.tmp").write_bytes(b"")  # half written
    assert not resume.began()
    resume.once("anchors", lambda: torch.zeros(1))
    assert resume.began()
    resume.close()
    assert not resume.began()
    assert not Resume().began()


def test_without_an_earlier_run_there_is_no_state(tmp_path: Path) -> None:
    assert Resume(tmp_path / "run").load() is None
    (tmp_path / "run").mkdir()
    assert Resume(tmp_path / "run").load() is None


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_short_counts_as_none(tmp_path: Path, share: float) -> None:
    file = tmp_path / "run"
    Resume(file, every=0).offer(lambda: STATE)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    assert Resume(file).load() is None


class Foreign:
    """What only unpickling with all its rights would bring back."""


def test_a_file_of_another_make_counts_as_none(tmp_path: Path) -> None:
    file = tmp_path / "run"
    torch.save(Foreign(), file)
    assert Resume(file).load() is None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [b"hello\n", b"{}", b"PK\x03\x04", b"\x80\x02.", bytes(64)],
    ids=["text", "json", "zip", "pickle", "zeros"],
)
def test_a_file_of_anything_else_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run").write_bytes(content)
    assert Resume(tmp_path / "run").load() is None


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_of_noise_counts_as_none(tmp_path: Path) -> None:
    for seed in range(100):
        (tmp_path / "run").write_bytes(random.Random(seed).randbytes(100))
        assert Resume(tmp_path / "run").load() is None


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> list:
    """What is read of a file after a byte of it was changed, for many bytes."""
    file = tmp_path_factory.mktemp("damaged") / "run"
    Resume(file, every=0).offer(lambda: {"w": torch.ones(8), "more": {"n": 1}})
    whole, found = file.read_bytes(), []
    for seed in range(300):
        rng = random.Random(seed)
        changed = bytearray(whole)
        changed[rng.randrange(len(whole))] = rng.randrange(256)
        file.write_bytes(changed)
        found.append(Resume(file).load())
    return found


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_with_a_byte_changed_is_read_or_counts_as_none(damaged: list) -> None:
    assert None in damaged
    assert any(state is not None for state in damaged), "where the byte is of no account"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_with_a_byte_changed_is_never_read_as_another(damaged: list) -> None:
    for state in damaged:
        if state is not None:
            assert torch.equal(state["w"], torch.ones(8))
            assert state == {"w": state["w"], "more": {"n": 1}}


def test_what_is_dear_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> torch.Tensor:
        made.append(torch.randn(3))
        return made[-1]

    first = Resume(tmp_path / "run").once("pictures", make)
    again = Resume(tmp_path / "run").once("pictures", make)
    other = Resume(tmp_path / "run").once("others", make)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(made) == 2


def test_what_is_dear_is_made_again_where_its_file_is_damaged(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "run")
    resume.once("pictures", lambda: torch.zeros(3))
    (tmp_path / "run.pictures").write_bytes(b"PK")
    assert resume.once("pictures", lambda: torch.ones(3)).tolist() == [1, 1, 1]
    assert resume.once("pictures", lambda: torch.zeros(3)).tolist() == [1, 1, 1]


def test_close_removes_all_of_the_run_and_nothing_else(tmp_path: Path) -> None:
    other = Resume(tmp_path / "run2", every=0)
    other.offer(lambda: STATE)
    resume = Resume(tmp_path / "run", every=0)
    resume.offer(lambda: STATE)
    resume.once("pictures", lambda: torch.zeros(3))
    resume.once("start", lambda: torch.zeros(3))
    resume.close()
    assert [file.name for file in tmp_path.iterdir()] == ["run2"]
    resume.close()
    assert other.load() is not None


def test_close_of_a_name_with_a_dot_leaves_the_one_without(tmp_path: Path) -> None:
    plain, dotted = (Resume(tmp_path / name, every=0) for name in ("run", ".run"))
    for resume in (plain, dotted):
        resume.offer(lambda: STATE)
    (tmp_path / "..run.1.tmp").touch()  # what a killed process left
    dotted.close()
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_close_without_a_folder_does_nothing(tmp_path: Path) -> None:
    Resume(tmp_path / "folder" / "run").close()
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_the_folder_is_no_state(tmp_path: Path) -> None:
    """Somebody may change the folder while a run goes on, whose result must not be lost to it."""
    (tmp_path / "folder").touch()
    resume = Resume(tmp_path / "folder" / "run")
    assert not resume.began()
    resume.close()


def test_a_state_that_cannot_be_removed_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = Resume(tmp_path / "run", every=0)
    resume.offer(lambda: {"number": 1})

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "unlink", refuse)
    resume.close()
    assert resume.began()


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "run", every=0)
    resume.offer(lambda: {"number": 1})
    with pytest.raises((AttributeError, TypeError)):
        resume.offer(lambda: {"number": lambda: 2})  # no file can hold it
    assert resume.load() == {"number": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_where_no_state_can_be_written_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").touch()  # a file, where the folder should be
    resume = Resume(tmp_path / "folder" / "run", every=0)
    assert resume.once("pictures", lambda: torch.ones(3)).tolist() == [1, 1, 1]
    resume.offer(untouched)
    assert len(caplog.records) == 1
    assert "cannot be saved in" in caplog.text


def test_without_a_file_nothing_is_kept_and_all_works() -> None:
    resume = Resume(every=0)
    resume.offer(untouched)
    assert resume.load() is None
    made = []
    for _ in range(2):
        resume.once("pictures", lambda: made.append(1) or torch.zeros(1))
    assert len(made) == 2
    resume.close()


# The run


class Parts:
    """All kinds of parts that change in a run."""

    def __init__(self, resume: Resume) -> None:
        self.edit = Edit({"w": torch.ones(4)}, rank=0)
        self.optimiser = self.edit.adam((0.9, 0.999), 1e-8, rate=0.1)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.judge = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))
        self.rng, self.noise = random.Random(0), torch.Generator().manual_seed(0)
        self.run = Run(
            resume,
            self.edit,
            optimiser=self.optimiser,
            judge=self.judge,
            rng=self.rng,
            noise=self.noise,
        )

    def steps(self, last: int) -> list[float]:
        for _ in range(self.run.done, last):
            x = torch.randn(3, 4, generator=self.noise) * self.rng.random()
            w = self.edit.changed("w", self.edit.weights["w"])
            self.edit.step(self.optimiser, self.judge(x * w).square().sum() + (w * x).sum())
            self.run.more["last"] = self.rng.random()
            self.run.offer()
        return [*self.edit.deltas["w"].full.tolist(), self.run.more["last"], *self.edit.history]


@pytest.mark.parametrize("cut", [1, 4, 8])
def test_a_run_that_is_cut_short_goes_on_bit_for_bit(tmp_path: Path, cut: int) -> None:
    whole = Parts(Resume()).steps(8)
    Parts(Resume(tmp_path / "run", every=0)).steps(cut)
    rest = Parts(Resume(tmp_path / "run", every=0))
    assert rest.run.done == cut
    assert rest.steps(8) == whole
    for ours, theirs in zip(rest.judge.buffers(), Parts(Resume()).judge.buffers(), strict=True):
        assert not torch.equal(ours, theirs), "batch norm's running values are part of the state"


def test_seconds_before_it_was_cut_short_count(tmp_path: Path) -> None:
    Parts(Resume(tmp_path / "run", every=0)).steps(2)
    state = torch.load(tmp_path / "run", weights_only=True)
    assert 0 < state["seconds"] < 60
    torch.save({**state, "seconds": 100.0}, tmp_path / "run")
    again = Resume(tmp_path / "run", every=0)
    assert again.before == 0
    Parts(again).steps(4)
    assert again.before == 100
    assert 100 < torch.load(tmp_path / "run", weights_only=True)["seconds"] < 160


def test_a_run_without_an_earlier_one_begins_anew(tmp_path: Path) -> None:
    run = Parts(Resume(tmp_path / "run")).run
    assert (run.done, run.more) == (0, {})


def test_a_state_of_other_parts_is_left_alone(tmp_path: Path) -> None:
    resume = Resume(tmp_path / "run", every=0)
    resume.offer(lambda: STATE)
    assert Parts(resume).run.done == 0


def test_a_state_of_another_version_is_left_alone(tmp_path: Path) -> None:
    Parts(Resume(tmp_path / "run", every=0)).steps(2)
    state = torch.load(tmp_path / "run", weights_only=True)
    assert Parts(Resume(tmp_path / "run")).run.done == 2
    torch.save({**state, "version": "0.0.1"}, tmp_path / "run")
    assert Parts(Resume(tmp_path / "run")).run.done == 0


@pytest.mark.parametrize("content", [torch.ones(2), [1, 2], "text", 3], ids=type)
def test_a_readable_file_of_something_else_is_left_alone(tmp_path: Path, content) -> None:
    torch.save(content, tmp_path / "run")
    assert Parts(Resume(tmp_path / "run")).run.done == 0


def test_a_finished_run_that_is_asked_for_again_still_has_its_deltas(tmp_path: Path) -> None:
    """A crash between the last step and the end: there is no step left to take."""
    whole = Parts(Resume(tmp_path / "run", every=0))
    whole.steps(4)
    again = Parts(Resume(tmp_path / "run", every=0))
    assert again.run.done == 4
    assert torch.equal(again.edit.tensors()["w"]["diff"], whole.edit.tensors()["w"]["diff"])


def test_a_run_that_diverges_after_going_on_hands_over_what_it_began_with(tmp_path: Path) -> None:
    first = Parts(Resume(tmp_path / "run", every=0))
    first.steps(4)
    again = Parts(Resume(tmp_path / "run", every=0))
    w = again.edit.changed("w", again.edit.weights["w"])
    with pytest.raises(Diverged) as error:
        again.edit.step(again.optimiser, w.sum() * torch.nan)
    assert 0 < len(error.value.history) <= 4
    assert set(error.value.deltas) == {"w"}

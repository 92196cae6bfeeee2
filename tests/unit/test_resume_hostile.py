"""States and tensors that a run kept, as a bad disk or a stranger may leave them."""

from __future__ import annotations

import copy
import math
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_resume import Parts
from tiny import Cancelled, TinyNetworkModel, cancel_at, same

from unlearn.core.resume import Resume
from unlearn.methods.domain_correction import DomainCorrectionSettings, domain_correction
from unlearn.methods.key_step import KeyStepSettings, found_start, key_step
from unlearn.methods.parts.key_step_search import KeySteps

NAN = torch.tensor([1.0, math.nan, 1.0, 1.0])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """A good state after two steps."""
    file = tmp_path_factory.mktemp("kept") / "run"
    Parts(Resume(file, every=0)).steps(2)
    return torch.load(file, weights_only=True)


def put(*path, value) -> Callable[[dict], None]:
    """A change of a state: another value at a place."""

    def change(state: dict) -> None:
        for name in path[:-1]:
            state = state[name]
        state[path[-1]] = value

    return change


def take(*path) -> Callable[[dict], None]:
    def change(state: dict) -> None:
        for name in path[:-1]:
            state = state[name]
        del state[path[-1]]

    return change


MOMENT = ("optimiser", "state", 0)
GROUP = ("optimiser", "param_groups", 0)
RANDOM = random.Random(0).getstate()
CHANGES = {
    "moments of one element": put(*MOMENT, "exp_avg", value=torch.zeros(1)),
    "squares of one element": put(*MOMENT, "exp_avg_sq", value=torch.zeros(1)),
    "squares below zero": put(*MOMENT, "exp_avg_sq", value=-torch.ones(4)),
    "moments in half precision": put(*MOMENT, "exp_avg", value=torch.zeros(4).half()),
    "moments that are not finite": put(*MOMENT, "exp_avg", value=NAN),
    "moments of no gradients": put(*MOMENT, "exp_avg", value=torch.full((4,), 1e4)),
    "a weight far too large": put("edit", "parameters", 0, value=torch.full((4,), 1e30)),
    "sparse moments": put(*MOMENT, "exp_avg", value=torch.zeros(4).to_sparse()),
    "moments without values": put(*MOMENT, "exp_avg", value=torch.zeros(4, device="meta")),
    "a moment is missing": take(*MOMENT, "exp_avg_sq"),
    "a step with a shape": put(*MOMENT, "step", value=torch.ones(2)),
    "a step that is a number": put(*MOMENT, "step", value=2),
    "a step below zero": put(*MOMENT, "step", value=torch.tensor(-1.0)),
    "moments of another weight": put("optimiser", "state", 7, value={}),
    "the optimiser is a list": put("optimiser", value=[]),
    "no groups": put("optimiser", "param_groups", value=[]),
    "a rate that is not finite": put(*GROUP, "lr", value=math.inf),
    "a rate above the run's": put(*GROUP, "lr", value=1e6),
    "a rate that is a tensor": put(*GROUP, "lr", value=torch.ones(3)),
    "betas of another kind": put(*GROUP, "betas", value=(torch.ones(3), 0.9)),
    "another form of Adam": put(*GROUP, "amsgrad", value=True),
    "an edit without anything": put("edit", value={}),
    "an edit that is none": put("edit", value=None),
    "a weight of another shape": put("edit", "parameters", 0, value=torch.zeros(4, 1)),
    "a weight that is expanded": put("edit", "parameters", 0, value=torch.zeros(1).expand(2**40)),
    "a weight that is not finite": put("edit", "parameters", 0, value=NAN),
    "a weight too many": put("edit", "parameters", value=[torch.zeros(4)] * 2),
    "a weight that is no tensor": put("edit", "parameters", 0, value=[0.0] * 4),
    "no word on what was read": put("edit", "read", value=[]),
    "a history of words": put("edit", "history", value=["a", "b"]),
    "a history that is not finite": put("edit", "history", value=[0.1, math.nan]),
    "a module of other names": put("judge", value={}),
    "a module of another shape": put("judge", "0.weight", value=torch.zeros(1)),
    "random numbers that are none": put("rng", value=(3, (1, 2), None)),
    "random numbers of another version": put("rng", value=(2, *RANDOM[1:])),
    "random numbers with a word behind": put("rng", value=(*RANDOM[:2], "x")),
    "noise of zeros": put("noise", value=torch.zeros(5056, dtype=torch.uint8)),
    "noise that is too short": put("noise", value=torch.zeros(3, dtype=torch.uint8)),
    "more is a list": put("more", value=[]),
    "seconds of a day to come": put("seconds", value=math.inf),
    "seconds in words": put("seconds", value="many"),
    "a part is missing": take("judge"),
    "a part too many": put("other", value=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_state_that_does_not_fit_is_not_used_and_that_is_said(
    change: Callable, kept: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = copy.deepcopy(kept)
    change(state)
    torch.save(state, tmp_path / "run")
    resume = Resume(tmp_path / "run", every=0)
    run = Parts(resume)
    assert (run.run.done, run.run.more, resume.before) == (0, {}, 0)
    assert resume.said.startswith("The file run of an earlier run cannot be used (")
    assert resume.said.count("\n") == 1
    assert resume.said.strip() in caplog.text
    # Nothing of it was put back: the run is the same as one that never had a state.
    assert run.steps(3) == Parts(Resume()).steps(3)
    assert Resume(tmp_path / "run").load()["edit"]["history"], "the next state replaces it"


def test_a_good_state_is_used_and_nothing_is_said(kept: dict, tmp_path: Path) -> None:
    torch.save(kept, tmp_path / "run")
    resume = Resume(tmp_path / "run")
    assert Parts(resume).run.done == 2
    assert resume.said == ""


def packed(file: Path) -> None:
    """The same parts, packed as torch.save never does, with a large one among them."""
    whole = file.with_name("whole")
    file.rename(whole)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
        with new.open("run/data/99", "w") as part:
            for _ in range(64):
                part.write(bytes(2**20))


def shared(file: Path) -> None:
    """Many parts that are the same bytes of the file."""
    with zipfile.ZipFile(file, "a") as parts:
        large = max(parts.infolist(), key=lambda part: part.file_size)
        for number in range(200):
            part = copy.copy(large)
            part.filename = part.orig_filename = f"run/data/{number + 100}"
            parts.filelist.append(part)
            parts.NameToInfo[part.filename] = part
        parts._didModify = True


@pytest.mark.parametrize("damage", [packed, shared])
def test_a_file_that_unpacks_to_more_is_not_unpacked(
    damage: Callable, kept: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(kept, tmp_path / "run")
    damage(tmp_path / "run")
    read = []
    monkeypatch.setattr(torch, "load", lambda *args, **named: read.append(args))
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda self: read.append(self))
    resume = Resume(tmp_path / "run")
    assert Parts(resume).run.done == 0
    assert "its parts are compressed, which torch.save never does" in resume.said
    assert not read


def test_a_file_that_is_far_too_large_is_not_read(kept: dict, tmp_path: Path) -> None:
    with (tmp_path / "run").open("wb") as file:
        torch.save(kept, file)
        file.seek(2**30)  # of holes, which take no space
        file.write(b"\0")
    resume = Resume(tmp_path / "run")
    assert Parts(resume).run.done == 0
    assert "it has 1073741825 bytes, but at most" in resume.said


# What the methods keep


KEY_STEP = KeyStepSettings(iterations=3, steps=3, start=1, batch=1, start_solved=False)
DOMAIN = DomainCorrectionSettings(iterations=4, alone=1, pictures=2, batch=1, start_solved=False)


def cut(method: Callable, settings, file: Path) -> dict:
    """The state of a run that was cut short after its second step."""
    with pytest.raises(Cancelled):
        method(TinyNetworkModel(), ["cat"], settings, cancel_at(3), Resume(file, every=0))
    return torch.load(file, weights_only=True)


WALKS = {
    "no sentences": put("more", "walked", value=[]),
    "a sentence that takes gigabytes": put("more", "walked", value=["a {:9999999999}"]),
    "a sentence that looks inside": put("more", "walked", value=["{0.__class__}"]),
    "sentences that are missing": take("more", "walked"),
    "losses of another concept": put("more", "recent", value=[[1.0], [1.0]]),
    "losses that are words": put("more", "recent", value=[["a"]]),
    "a step past the end": put("trajectory", "step", value=99),
    "a step that is none": put("trajectory", "step", value=None),
    "a latent of another shape": put("trajectory", "x", value=torch.zeros(1, 4, 4, 4)),
    "a walk without a step": put("trajectory", value={}),
    "more steps than the run has": put("edit", "history", value=[0.5] * 100),
}


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return cut(key_step, KEY_STEP, tmp_path_factory.mktemp("walked") / "run")


@pytest.fixture(scope="module")
def whole():
    return key_step(TinyNetworkModel(), ["cat"], KEY_STEP)


@pytest.mark.parametrize("change", [*WALKS.values(), lambda state: None], ids=[*WALKS, "none"])
def test_key_step_begins_anew_and_comes_to_the_same(
    change: Callable, walked: dict, whole, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    state = copy.deepcopy(walked)
    change(state)
    torch.save(state, tmp_path / "run")
    resume = Resume(tmp_path / "run", every=0)
    assert same(key_step(TinyNetworkModel(), ["cat"], KEY_STEP, None, resume), whole)
    assert bool(resume.said) == ("none" not in request.node.callspec.id.split("-"))


@pytest.mark.parametrize(
    "change",
    [
        put("more", value={}),
        put("more", "number", value=-(10**9)),
        put("more", "number", value=10**9),
        put("more", "number", value=True),
        put("more", "number", value=1.5),
        put("more", "left", value=["a"]),
        put("judging", "state", 0, "exp_avg", value=torch.zeros(1)),
    ],
)
def test_domain_correction_begins_anew(change: Callable, tmp_path: Path) -> None:
    state = cut(domain_correction, DOMAIN, tmp_path / "run")
    change(state)
    torch.save(state, tmp_path / "run")
    resume = Resume(tmp_path / "run", every=math.inf)
    seen = []
    domain_correction(
        TinyNetworkModel(), ["cat"], DOMAIN, lambda step, *_: seen.append(step), resume
    )
    assert seen == [1, 2, 3, 4]
    assert "cannot be used" in resume.said


LATENTS = [
    torch.zeros(1),
    torch.zeros(2, 3, 4, 5),
    torch.full((2, 3, 4, 4), math.nan),
    torch.zeros(2, 3, 4, 4, dtype=torch.int64),
    torch.zeros(1).expand(2**20, 3, 4, 4),
    [1, 2],
    None,
    {"x": torch.zeros(2, 3, 4, 4)},
]


@pytest.mark.parametrize("bad", LATENTS, ids=str)
def test_pictures_that_do_not_fit_are_drawn_again(bad, tmp_path: Path) -> None:
    torch.save(bad, tmp_path / "run.held")
    resume, drawn = Resume(tmp_path / "run"), torch.ones(2, 3, 4, 4)
    used: list[str] = []
    resume.on_use = lambda: used.append("bad")
    assert resume.once_latents("held", TinyNetworkModel(), 2, lambda: drawn) is drawn
    assert "run.held of an earlier run cannot be used" in resume.said
    again = Resume(tmp_path / "run")
    again.on_use = lambda: used.append("good")
    for _ in range(2):
        kept = again.once_latents("held", TinyNetworkModel(), 2, lambda: None)
        assert torch.equal(kept, drawn)
    assert not again.said
    assert used == ["good"], "told once, and of what is used alone"


def test_domain_correction_draws_its_pictures_again(tmp_path: Path) -> None:
    wanted = domain_correction(TinyNetworkModel(), ["cat"], DOMAIN, None, Resume(tmp_path / "a"))
    for name in ("anchors", "held"):
        torch.save(torch.load(tmp_path / f"a.{name}")[:1], tmp_path / f"b.{name}")
    resume = Resume(tmp_path / "b")
    assert same(domain_correction(TinyNetworkModel(), ["cat"], DOMAIN, None, resume), wanted)
    assert "b.anchors of an earlier run cannot be used" in resume.said
    assert "b.held of an earlier run cannot be used" in resume.said


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 3),
        torch.zeros(2, 6, dtype=torch.float64),
        torch.full((2, 6), math.inf, dtype=torch.float64),
        torch.tensor([[0, 1, 2, 3, 4, 5], [9.0] * 6], dtype=torch.float64),
        torch.zeros(3),
    ],
    ids=str,
)
def test_a_start_that_does_not_fit_is_measured_again(
    bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = KeySteps([0, 1, 2, 3, 4, 5], [0.0, 0.0, 0.5, 0.5, 1.0, 1.0], 5)
    monkeypatch.setattr(
        "unlearn.methods.parts.key_step_search.find_key_steps", lambda *args, **named: found
    )
    torch.save(bad, tmp_path / "run.start")
    asked = TinyNetworkModel(), ["cat"], ("object", ""), 5, 3.0, 0
    for said in ("run.start of an earlier run cannot be used", ""):
        resume = Resume(tmp_path / "run")
        assert found_start(*asked, resume) == found
        assert said in resume.said if said else not resume.said

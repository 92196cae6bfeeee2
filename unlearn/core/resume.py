"""Resuming: a long run keeps its state in a file and goes on from it, to the very same result."""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from ..files import state_checks as fitting
from ..files import torch_files
from ..files.state_checks import Misfit
from ..files.writing import free_bytes, reason, whole_file
from .edit import Edit
from .model import DiffusionModel
from .version import VERSION

log = logging.getLogger(__name__)


class Resume:
    """Where a run keeps its state, so that a crash, a cancel or a restart costs little of it.

    file: None keeps nothing. The state holds tensors, numbers, strings, lists, tuples and dicts
    only; the file is read without running anything in it. Where it cannot be written, the run goes
    on without. Whoever asked for the run closes this once its result is safe.
    """

    def __init__(self, file: Path | None = None, every: float = 60.0) -> None:
        self.file, self.every = file, every
        self.reserved = 0
        """Bytes that a state must leave free on the disk: for the result."""
        self.failed = ""
        """Why the state could not be kept, if so."""
        self.began_at = self.saved = time.monotonic()
        self.before = 0.0
        """Seconds that a run took before it was cut short, the last time that it kept its state."""
        self.said = ""
        """A line for the user where something was kept that could not be used, else empty."""
        self.on_use: Callable[[], None] = lambda: None
        """Called once, when the run goes on from something that was kept."""

    def load(self, largest: int | None = None) -> dict | None:
        """The state of an earlier run; None where there is none or it cannot be read.

        largest: bytes that it may have, where that is known.
        """
        return self._read(self.file, largest) if self.file else None

    def doubt(self, file: Path, why: str) -> None:
        """Tell the user that what is kept in a file is not used. why: a few words."""
        said = f"What an earlier run kept in {file.name} cannot be used ({why}); it is made anew."
        log.warning(said)
        self.said += said + "\n"

    def use(self) -> None:
        """Something that was kept is used."""
        self.on_use, told = lambda: None, self.on_use
        told()

    def offer(self, state: Callable[[], dict]) -> None:
        """Keep the state if `every` seconds have passed since the last time."""
        if self.file and time.monotonic() - self.saved >= self.every:
            self._write(self.file, state())
            self.saved = time.monotonic()

    def once(
        self,
        name: str,
        make: Callable[[], torch.Tensor],
        check: Callable[[torch.Tensor], None] = lambda kept: None,
        largest: int | None = None,
    ) -> torch.Tensor:
        """A tensor that is dear to make: from its own file beside the state where it is there.

        check: raises Misfit for one that cannot be what `make` makes. largest: bytes of its file.
        """
        if not self.file:
            return make()
        file = self.file.with_name(f"{self.file.name}.{name}")
        kept = self._read(file, largest)
        if kept is not None:
            try:
                fitting.check(isinstance(kept, torch.Tensor), "it is no tensor")
                check(kept)
                self.use()
                return kept
            except Misfit as error:
                self.doubt(file, str(error))
        kept = make()
        self._write(file, kept)
        return kept

    def once_latents(
        self, name: str, model: DiffusionModel, count: int, make: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """`once`, of so many of the model's latents."""
        shape = count, *model.noise(1, torch.Generator()).shape[1:]

        def check(kept: torch.Tensor) -> None:
            fitting.check_tensor(kept, shape, FLOATS, "batch of latents")

        return self.once(name, make, check, 4 * math.prod(shape) + MORE)

    def began(self) -> bool:
        """Whether anything is kept that another run would go on from."""
        return any(not file.name.startswith(".") for file in self._files())

    def close(self) -> None:
        """The run is done: its state is of no use any more."""
        for file in self._files():
            with suppress(OSError):  # what was trained must not be lost to it
                file.unlink()

    def _files(self) -> list[Path]:
        """The state, what was made once, and what a killed process left half written."""
        if not self.file:
            return []
        names = f"{self.file.name}.", f".{self.file.name}."
        try:
            return [f for f in self.file.parent.iterdir() if f"{f.name}.".startswith(names)]
        except OSError:  # the folder is gone, or no folder any more
            return []

    def _read(self, file: Path, largest: int | None):
        if not file.is_file():
            return None
        try:
            kept = torch_files.read(file, largest)
            if kept is None:
                raise ValueError("it is empty")
            return kept
        except ValueError as error:
            self.doubt(file, str(error))
            return None

    def _write(self, file: Path, state) -> None:
        try:
            needed = _bytes(state) + self.reserved
            if free_bytes(file) < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with whole_file(file) as new, new.open("wb") as out:
                torch.save(state, out)
        # Of a full disk torch says RuntimeError: its writer ends a file that is cut short.
        except (OSError, RuntimeError) as error:
            self.every = math.inf  # said once, and not tried at every step
            self.failed = reason(error)
            log.warning(
                "The state of this run cannot be kept in %s (%s). The run goes on; if it is cut "
                "short, it begins anew.",
                file,
                self.failed,
            )


def _bytes(state) -> int:
    """Of all tensors in a state."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))


class Run:
    """All that changes in the course of a run; it begins where `resume` says, or anew.

    parts: by name, whatever has a state: modules, Adam, generators of random numbers, and what has
    `state`, `check` and `restore` as an Edit does. steps: how many it can have done. check: raises
    Misfit for plain values (`more`) that are none of this run's.

    A state is put back where all of it is what this run expects, or nothing of it is.
    """

    def __init__(
        self,
        resume: Resume,
        edit: Edit,
        *,
        steps: int = sys.maxsize,
        check: Callable[[dict], None] = lambda more: None,
        **parts,
    ) -> None:
        self.resume, self.edit = resume, edit
        self.parts = {"edit": edit, **parts}
        self.more: dict = {}
        """Plain values to be had again."""
        state = resume.load(_largest(self.parts))
        if state is None:
            return
        try:
            fitting.check_names(state, {"version", "more", "seconds", *self.parts}, "state")
            fitting.check(state["version"] == VERSION, "it is of another version")
            fitting.check_number(state["seconds"], "time", 0)
            for name, part in self.parts.items():
                _check(part, state[name])
            fitting.check(len(state["edit"]["history"]) <= steps, "it has more steps than this run")
            fitting.check(isinstance(state["more"], dict), "its values are none")
            check(state["more"])
        except Misfit as error:
            resume.doubt(resume.file, str(error))
            return
        for name, part in self.parts.items():
            _restore(part, state[name])
        self.more, resume.before = state["more"], state["seconds"]
        resume.use()

    @property
    def done(self) -> int:
        """Steps of an earlier run."""
        return len(self.edit.history)

    def offer(self) -> None:
        """Call it after every iteration."""
        self.resume.offer(
            lambda: {
                "version": VERSION,
                "more": self.more,
                "seconds": self.resume.before + time.monotonic() - self.resume.began_at,
                **{name: _state(part) for name, part in self.parts.items()},
            }
        )


FLOATS = {torch.float32, torch.float16, torch.bfloat16}
MORE = 2**26
"""Bytes that a file may have beside the weights that are trained: histories, a walk's latents."""


def _largest(parts: dict) -> int:
    """Bytes of a whole state: Adam keeps two more of each weight."""
    weights = [
        weight
        for part in parts.values()
        if isinstance(part, (Edit, torch.nn.Module))
        for weight in part.parameters()
    ]
    return 4 * sum(weight.nbytes for weight in weights) + MORE


def _check(part, state) -> None:
    if isinstance(part, random.Random):
        fitting.check_random(state)
    elif isinstance(part, torch.Generator):
        fitting.check_generator(state)
    elif isinstance(part, torch.optim.Optimizer):
        fitting.check_adam(state, part)
    elif isinstance(part, torch.nn.Module):
        fitting.check_module(state, part)
    else:
        part.check(state)


def _state(part):
    if isinstance(part, random.Random):
        return part.getstate()
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part.state_dict() if hasattr(part, "state_dict") else part.state()


def _restore(part, state) -> None:
    if isinstance(part, random.Random):
        part.setstate(state)
    elif isinstance(part, torch.Generator):
        part.set_state(state)
    elif hasattr(part, "load_state_dict"):
        part.load_state_dict(state)
    else:
        part.restore(state)

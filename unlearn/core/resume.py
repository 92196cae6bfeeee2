"""Resuming: a long run saves its state in a file and continues from it, with the same result."""

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

from ..files import state_checks, torch_files
from ..files.state_checks import Misfit
from ..files.writing import free_bytes, reason, whole_file
from .edit import Edit
from .model import DiffusionModel
from .version import VERSION

log = logging.getLogger(__name__)


class Resume:
    """The file in which a run saves its state, so that a crash, a cancel or a restart costs little.

    file: None saves nothing. every: seconds between two saves. The state holds only tensors,
    numbers, strings, lists, tuples and dicts, and reading the file runs no code from it. If it
    cannot be written, the run goes on without. The caller calls `close` once the result is safe.
    """

    def __init__(self, file: Path | None = None, every: float = 60.0) -> None:
        self.file, self.every = file, every
        self.reserved = 0
        """Bytes that a state must leave free on the disk, for the result."""
        self.failed = ""
        """Why the state could not be saved; "" if it could."""
        self.began_at = self.saved = time.monotonic()
        self.before = 0.0
        """The seconds that an interrupted run had taken when it last saved its state."""
        self.said = ""
        """Lines for the user about saved files that could not be used; "" if there were none."""
        self.on_use: Callable[[], None] = lambda: None
        """Called once, when the run first uses something that was saved."""

    def load(self, largest: int | None = None) -> dict | None:
        """The state of an earlier run; None where there is none or it cannot be read.

        largest: the most bytes that it may have, where that is known.
        """
        return self._read(self.file, largest) if self.file else None

    def doubt(self, file: Path, why: str) -> None:
        """Tell the user that a saved file is not used. why: a few words."""
        message = (
            f"The file {file.name} of an earlier run cannot be used ({why}); its content is "
            "computed again."
        )
        log.warning(message)
        self.said += message + "\n"

    def use(self) -> None:
        """Report, the first time only, that something saved is used."""
        on_use, self.on_use = self.on_use, lambda: None
        on_use()

    def offer(self, state: Callable[[], dict]) -> None:
        """Save the state if `every` seconds have passed since the last time."""
        if self.file and time.monotonic() - self.saved >= self.every:
            self._write(self.file, state())
            self.saved = time.monotonic()

    def once(
        self,
        name: str,
        make: Callable[[], torch.Tensor],
        check: Callable[[torch.Tensor], None] = lambda saved: None,
        largest: int | None = None,
    ) -> torch.Tensor:
        """A tensor that takes long to compute. It is read from its own file beside the state if
        that exists; else it is computed and saved there.

        check: raises Misfit for a tensor that `make` cannot have made. largest: the most bytes that
        its file may have.
        """
        if not self.file:
            return make()
        file = self.file.with_name(f"{self.file.name}.{name}")
        saved = self._read(file, largest)
        if saved is not None:
            try:
                state_checks.check(isinstance(saved, torch.Tensor), "it is not a tensor")
                check(saved)
                self.use()
                return saved
            except Misfit as error:
                self.doubt(file, str(error))
        made = make()
        self._write(file, made)
        return made

    def once_latents(
        self, name: str, model: DiffusionModel, count: int, make: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        """`once` for a batch of `count` of the model's latents."""
        shape = count, *model.noise(1, torch.Generator()).shape[1:]

        def check(saved: torch.Tensor) -> None:
            state_checks.check_tensor(saved, shape, FLOATS, "batch of latents")

        return self.once(name, make, check, 4 * math.prod(shape) + MORE)

    def began(self) -> bool:
        """Whether there are saved files from which another run would continue."""
        return any(not file.name.startswith(".") for file in self._files())

    def close(self) -> None:
        """Delete the saved files: the run is done."""
        for file in self._files():
            with suppress(OSError):  # a leftover file is no reason to lose the result
                file.unlink()

    def _files(self) -> list[Path]:
        """The state, the files of `once`, and files that a killed process left half written."""
        if not self.file:
            return []
        names = f"{self.file.name}.", f".{self.file.name}."
        try:
            return [f for f in self.file.parent.iterdir() if f"{f.name}.".startswith(names)]
        except OSError:  # the folder is gone, or is a file now
            return []

    def _read(self, file: Path, largest: int | None):
        if not file.is_file():
            return None
        try:
            saved = torch_files.read(file, largest)
            if saved is None:
                raise ValueError("it is empty")
            return saved
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
        # torch raises RuntimeError for a full disk, when it closes the file that is cut short.
        except (OSError, RuntimeError) as error:
            self.every = math.inf  # do not try again, and warn once
            self.failed = reason(error)
            log.warning(
                "The state of this run cannot be saved in %s (%s). The run goes on; if it is "
                "interrupted, it starts again from the beginning.",
                file,
                self.failed,
            )


def _bytes(state) -> int:
    """The size of all tensors in a state."""
    return sum(leaf.nbytes for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))


class Run:
    """Everything that changes in the course of a run. It continues from `resume`'s state if there
    is one.

    parts: by name, everything that has a state: modules, Adam, random generators, and objects with
    `state`, `check` and `restore` like an Edit's. steps: how many the run takes at most. check:
    raises Misfit if the plain values (`more`) cannot be this run's.

    A state is restored only if all of it passes the checks; otherwise nothing of it is.
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
        """Plain values that are saved with the state."""
        state = resume.load(_largest(self.parts))
        if state is None or resume.file is None:
            return
        try:
            state_checks.check_names(state, {"version", "more", "seconds", *self.parts}, "state")
            state_checks.check(state["version"] == VERSION, "another version wrote it")
            state_checks.check_number(state["seconds"], "time", 0)
            for name, part in self.parts.items():
                _check(part, state[name])
            done = len(state["edit"]["history"])
            state_checks.check(done <= steps, "it has more steps than this run")
            state_checks.check(isinstance(state["more"], dict), "its values are not a dict")
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
        """The number of steps done so far, with those of an earlier run."""
        return len(self.edit.history)

    def offer(self) -> None:
        """Save the state if it is time. To be called after every iteration."""
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
"""Bytes that a file may have beside the trained weights, for histories and latents."""


def _largest(parts: dict) -> int:
    """The most bytes of a state. Adam keeps two more values for each trained one."""
    weights = [
        weight
        for part in parts.values()
        if isinstance(part, (Edit, torch.nn.Module))
        for weight in part.parameters()
    ]
    return 4 * sum(weight.nbytes for weight in weights) + MORE


def _check(part, state) -> None:
    if isinstance(part, random.Random):
        state_checks.check_random(state)
    elif isinstance(part, torch.Generator):
        state_checks.check_generator(state)
    elif isinstance(part, torch.optim.Optimizer):
        state_checks.check_adam(state, part)
    elif isinstance(part, torch.nn.Module):
        state_checks.check_module(state, part)
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

"""Resuming: a long run keeps its state in a file and goes on from it, to the very same result."""

from __future__ import annotations

import errno
import logging
import math
import os
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from .erasure import VERSION
from .model import Edit
from .writing import free_bytes, reason, whole_file

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

    def load(self) -> dict | None:
        """The state of an earlier run; None where there is none or it cannot be read."""
        return self._read(self.file) if self.file else None

    def offer(self, state: Callable[[], dict]) -> None:
        """Keep the state if `every` seconds have passed since the last time."""
        if self.file and time.monotonic() - self.saved >= self.every:
            self._write(self.file, state())
            self.saved = time.monotonic()

    def once(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A tensor that is dear to make: from its own file beside the state where it is there."""
        if not self.file:
            return make()
        file = self.file.with_name(f"{self.file.name}.{name}")
        kept = self._read(file)
        if kept is None:
            kept = make()
            self._write(file, kept)
        return kept

    def began(self) -> bool:
        """Whether anything is kept that another run would go on from."""
        return any(not file.name.startswith(".") for file in self._files())

    def close(self) -> None:
        """The run is done: its state is of no use any more."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """The state, what was made once, and what a killed process left half written."""
        if not self.file or not self.file.parent.exists():
            return []
        names = f"{self.file.name}.", f".{self.file.name}."
        return [f for f in self.file.parent.iterdir() if f"{f.name}.".startswith(names)]

    @staticmethod
    def _read(file: Path):
        if not file.is_file():
            return None
        try:
            with zipfile.ZipFile(file) as parts:
                if parts.testzip() is not None:  # which torch.load does not look at
                    return None
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception:  # noqa: BLE001
            # Cut short or of another make, which torch says in a dozen ways: the run begins anew.
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

    parts: by name, whatever has a state: modules, optimisers, generators of random numbers, and
    what has `state` and `restore` as an Edit does.
    """

    def __init__(self, resume: Resume, edit: Edit, **parts) -> None:
        self.resume, self.edit = resume, edit
        self.parts = {"edit": edit, **parts}
        self.more: dict = {}
        """Plain values to be had again."""
        state = resume.load()
        known = {"version", "more", "seconds", *self.parts}
        if isinstance(state, dict) and state.keys() == known and state["version"] == VERSION:
            for name, part in self.parts.items():
                _restore(part, state[name])
            self.more, resume.before = state["more"], state["seconds"]

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

"""Several forward passes side by side: each waits at the same places until all have come so far.

A closed-form edit of a stack of layers needs what every prompt puts into a layer before it can
solve for that layer's change, and the change before any prompt goes on. Running all prompts again
for every layer would cost as many passes as there are layers. Here every batch of prompts is one
pass, in a thread of its own, and each layer is computed once. Only one thread runs at a time, so
the model need not be thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from .peak_memory import give_back, is_scarce

Meet = Callable[[Any, list[Any]], Sequence[Any]]


class _Abandoned(BaseException):
    """Ends a pass whose run was given up. Not an Exception, so no model catches it."""


class _Pass:
    """One pass in a thread, which runs only inside `go_on`."""

    def __init__(self, work: Callable[[], Any], threads: int) -> None:
        self._turn, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._abandoned = False
        self.place: Hashable = None
        self.value: Any = None
        self.answer: Any = None
        self.error: BaseException | None = None
        self.over = False
        self._thread = threading.Thread(target=self._run, args=(work, threads), daemon=True)
        self._thread.start()

    def _run(self, work: Callable[[], Any], threads: int) -> None:
        self._turn.acquire()
        try:
            if not self._abandoned:
                torch.set_num_threads(threads)  # a setting of each thread
                with torch.no_grad():
                    work()
        except _Abandoned:
            pass
        except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
            self.error = error
        finally:
            self.over = True
            self._back.release()

    def go_on(self) -> None:
        """Let it run to its next place or to its end."""
        self._turn.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def stop(self, place: Hashable, value: Any) -> Any:
        """Called in its thread: wait at a place, and return the answer."""
        self.place, self.value = place, value
        self._back.release()
        self._turn.acquire()
        if self._abandoned:
            raise _Abandoned
        answer, self.answer = self.answer, None
        return answer

    def abandon(self) -> None:
        if not self.over:
            self._abandoned = True
            self._turn.release()
            self._back.acquire()
        self._thread.join()


class Lockstep:
    """Runs passes side by side; see the module. `number` and `stop` are for hooks inside them."""

    def __init__(self) -> None:
        self._passes: list[_Pass] = []
        self._running = -1

    @property
    def number(self) -> int:
        """The number of the pass that runs."""
        return self._running

    def stop(self, place: Hashable, value: Any) -> Any:
        """Wait until every pass is at this place; returns what `meet` answers to this one."""
        return self._passes[self._running].stop(place, value)

    def run(self, works: Sequence[Callable[[], Any]], meet: Meet) -> None:
        """Run all passes to their end.

        meet(place, values): called whenever all passes wait at one place, with the value of each;
        it returns an answer for each. Raises what a pass or `meet` raises, after all passes have
        ended, and RuntimeError where passes wait at different places.
        """
        self._passes = [_Pass(work, torch.get_num_threads()) for work in works]
        try:
            while True:
                for self._running, one in enumerate(self._passes):  # noqa: B020 (told to hooks)
                    one.go_on()
                    if is_scarce():
                        # Each thread keeps for itself what it has freed, as much as a pass takes.
                        # To take it again costs a fifth of the time, so only where it is needed.
                        give_back()
                if all(one.over for one in self._passes):
                    return
                places = {None if one.over else one.place for one in self._passes}
                if len(places) != 1:
                    raise RuntimeError(f"The passes wait at different places: {places}.")
                values = [one.value for one in self._passes]
                for one in self._passes:
                    one.value = None
                answers = meet(places.pop(), values)
                for one, answer in zip(self._passes, answers, strict=True):
                    one.answer = answer
        finally:
            for one in self._passes:
                one.abandon()
            self._passes = []

"""Progress bars on the terminal."""

from __future__ import annotations

from tqdm import tqdm

from ..core.edit import Edit
from ..core.progress import Progress


class Bar(Progress):
    """A bar for stages of work, as a context."""

    def __enter__(self) -> Bar:
        self.bar = tqdm(disable=None)
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        self.bar.set_description_str(f"ahead: {leader}" if leader else what, refresh=False)
        self.bar.total, self.bar.n = total, done
        self.bar.refresh()


class StepBar(Progress):
    """A bar for the steps of a training, as a context. what: is written before it."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> StepBar:
        self.bar = tqdm(desc=self.what, disable=None, unit="step")
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def step(self, step: int, total: int, loss: float, edit: Edit) -> None:
        self.bar.total = total
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self.bar.update(step - self.bar.n)

    def stage(self, what: str, done: int, total: int, leader: str = "") -> None:
        self.bar.set_postfix_str(f"{what}: {done}/{total}")

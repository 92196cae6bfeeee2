"""A progress bar on the terminal."""

from __future__ import annotations

from tqdm import tqdm


class Bar:
    """A progress bar as a context. Call it with the stage's name, the steps done and all steps."""

    def __enter__(self) -> Bar:
        self.bar = tqdm(disable=None)
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.bar.set_description_str(what, refresh=False)
        self.bar.total, self.bar.n = total, done
        self.bar.refresh()

"""A progress bar on the terminal, for what tells how far it is in words and numbers."""

from __future__ import annotations

from tqdm import tqdm


class Bar:
    """A context; called with what is being done, how far it is, and how far it goes."""

    def __enter__(self) -> Bar:
        self.bar = tqdm(disable=None)
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.bar.set_description_str(what, refresh=False)
        self.bar.total, self.bar.n = total, done
        self.bar.refresh()

"""The cases of the benchmark of speed: what each measures, where, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from .growth import GROWTH
from .models import SIZES

METHODS = {
    "few_shot": ("paper", "balanced"),
    "key_step": ("paper", "balanced"),
    "domain_correction": ("paper", "balanced"),
}
"""The methods that take steps, and their modes. All but the closed form."""
DENOISERS = ("iconcanvas", "sd15", "sdxl")
MINUTES = {"iconcanvas": 20, "sd15": 40, "sdxl": 60, "wide": 20, "": 10}
"""After which a case is stopped."""


@dataclass(frozen=True)
class Case:
    """One case at one size: a row of the table, measured in a process of its own."""

    name: str
    size: str = ""
    """"": it has none."""

    @property
    def key(self) -> str:
        return f"{self.size}: {self.name}" if self.size else self.name

    @property
    def method(self) -> str:
        return self.name.removeprefix("plain ").partition(" ")[0]

    @property
    def is_plain(self) -> bool:
        return self.name.startswith("plain ")

    @property
    def mode(self) -> str:
        return "" if self.is_plain else self.name.partition(" ")[2]

    def needs(self, is_gpu: bool) -> float:
        """GiB of memory that it takes at the least, by the weights alone and what is trained.

        A plain loop has its weights in float32, a gradient and two moments of each that it trains,
        and for the denoiser's methods a second denoiser. The pack's has a delta, its gradient and
        moments, and the changed weight that autograd keeps; its activations are in the estimate
        that it makes itself, and is refused by where they do not fit.
        """
        size = SIZES.get(self.size)
        if size is None:
            return 8.0 if self.name == "wan" else 0.5
        weights = size.gib
        trained = 0.55 * size.text if self.method == "few_shot" else size.network / 10
        state = 0.0
        if self.is_plain:
            copies = 1 if self.method == "few_shot" else 2
            weights = 4 * (copies * size.network + size.text) / 1.074
            state = 12 * trained / 1.074 + PLAIN_ACTIVATIONS.get(self.size, 0.0)
        elif self.method in METHODS:
            state = 20 * trained / 1.074
        # The host's process itself, beside a GPU's memory.
        return weights + state + (0.0 if is_gpu else 0.7)

    @property
    def minutes(self) -> float:
        """After so many it is stopped."""
        return MINUTES[self.size]


PLAIN_ACTIVATIONS = {"iconcanvas": 0.5, "sd15": 5.0, "sdxl": 20.0}
"""GiB of activations that a plain loop keeps of one picture, none of them recomputed."""


def cases_of(sizes: Iterable[str], only: Iterable[str] | None, quick: bool) -> list[Case]:
    """All cases at these sizes in the order in which they are measured. only: words; of all cases
    those whose name has one of them."""
    chosen = [case for case in every(tuple(sizes), quick) if is_asked(case, only)]
    return list(dict.fromkeys(chosen))


def is_asked(case: Case, only: Iterable[str] | None) -> bool:
    return only is None or any(word in case.name for word in only)


def every(sizes: tuple[str, ...], quick: bool) -> Iterator[Case]:
    yield Case("machine")
    if "iconcanvas" in sizes:
        yield Case("import")
    for size in sizes:
        if size in DENOISERS:
            yield Case("drawing", size)
            for method, modes in METHODS.items():
                # Beside one another, so that the machine is in the same mood for all of them.
                yield Case(f"plain {method}", size)
                for mode in modes:
                    yield Case(f"{method} {mode}", size)
        yield Case("closed_form", size)
        if size == "wide":
            yield Case("wan")
        if size in DENOISERS:
            yield Case("identify", size)
            yield Case("erasures", size)
        if size == "iconcanvas":
            yield Case("probe", size)
            for what in GROWTH:
                yield Case(f"growth {what}", size)


def measure(case: Case, quick: bool) -> dict:
    """Measure a case in this process."""
    from . import growth, methods, others, roof

    if case.name == "machine":
        return roof.measure_roof(quick)
    if case.name == "closed_form":
        return methods.measure_closed_form(case.size, quick)
    if case.name.startswith("growth "):
        return growth.measure_growth(case.name.removeprefix("growth "), quick)
    if case.is_plain:
        return methods.measure_plain(case.method, case.size, quick)
    if case.method in METHODS:
        return methods.measure_method(case.method, case.mode, case.size, quick)
    named: dict[str, Callable[[str, bool], dict]] = {
        "drawing": others.measure_drawing,
        "identify": others.measure_identify,
        "probe": others.measure_probe,
        "erasures": others.measure_erasures,
        "import": others.measure_import,
        "wan": others.measure_wan,
    }
    return named[case.name](case.size, quick)

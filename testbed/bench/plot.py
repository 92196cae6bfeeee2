"""The benchmark's rows as a plot: what each mode erases, what it keeps, and what comes back."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from statistics import mean

from unlearn.attacks import registry

from .plan import EPOCHS, METHODS

KEPT = {"ua": "tab:red", "ira": "tab:blue", "cra": "tab:green"}
ATTACKS = ("own", *registry.ATTACKS)
MARKERS = "o^sDvP*X"


def groups(rows: list[dict]) -> dict[str, list[dict]]:
    """From "method, mode" to its rows, in the plan's order; only the last of several epochs."""
    found = {}
    for method, modes in METHODS.items():
        for mode in modes:
            some = [r for r in rows if (r["method"], r["mode"]) == (method, mode)]
            some = [r for r in some if r.get("epochs", max(EPOCHS)) == max(EPOCHS)]
            if some:
                found[f"{method}, {mode}"] = some
    return found


def save_plot(rows: list[dict], file: Path) -> None:
    """A line for each method and mode: on the left UA, IRA and CRA, on the right the attacks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = groups(rows)
    figure, (kept, back) = pyplot.subplots(
        1, 2, sharey=True, figsize=(10, 1.2 + 0.26 * len(found)), width_ratios=(3, 2)
    )
    places = range(len(found))
    for name, color in KEPT.items():
        means = [mean(row[name] for row in some) for some in found.values()]
        kept.scatter(means, places, color=color, label=name.upper(), alpha=0.8)
    measured = (name for row in rows for name in row.get("attacks", ()))
    for name, marker in zip(dict.fromkeys([*ATTACKS, *measured]), cycle(MARKERS)):
        attacked = [
            (mean(values), place)
            for some, place in zip(found.values(), places)
            if (values := [r["attacks"][name] for r in some if name in r.get("attacks", {})])
        ]
        if attacked:
            label = "its own prompts" if name == "own" else name
            back.scatter(
                *zip(*attacked),
                marker=marker,
                label=label,
                facecolors="none",
                s=50,
                edgecolors=f"C{len(back.collections)}",
            )
    kept.set(title="gone (UA), and kept of its own kind and of others", xlim=(-0.03, 1.03))
    back.set(title="comes back by", xlim=(-0.03, 1.03))
    kept.set_yticks(places, list(found), fontsize=8)
    kept.invert_yaxis()
    small = {"ncols": 2, "fontsize": 8}
    for axes in (kept, back):
        axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        axes.grid(axis="y", alpha=0.3)
        if axes.collections:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=3, **small)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    pyplot.close(figure)

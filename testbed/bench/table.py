"""The benchmark's rows as Markdown tables."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median

from ..host.machine import measured_on
from .plan import EPOCHS, FEW, METHODS, SEEDS


def write_table(file: Path, rows: list[dict], command: str) -> None:
    """Write the table to a file. A file with marks keeps the rest of its text and gets a brief
    table between the marks. command: what made it."""
    begin, end = "<!-- bench -->", "<!-- /bench -->"
    whole = file.read_text("utf-8") if file.exists() else ""
    text = table(rows)
    if begin in whole and end in whole:
        text = table(rows, brief=True)
        text = f"{whole.partition(begin)[0]}{begin}\n{text}\n{end}{whole.partition(end)[2]}"
    else:
        text = f"# The benchmark\n\nMade by `{command}`. {LEGEND}\n\n{text}\n\n{of_the_few(rows)}\n"
    file.write_text(text, encoding="utf-8")


LEGEND = "What the columns and the modes mean: [results](results.md#the-columns)."


def of_the_few(rows: list[dict]) -> str:
    """A table for the concepts of FEW with the first seed, of the modes measured on all of them."""
    some = [row for row in rows if row["concept"] in FEW and row["seed"] == SEEDS[0]]
    modes: dict[tuple, set[str]] = {}
    for row in some:
        modes.setdefault((row["method"], row["mode"]), set()).add(row["concept"])
    some = [
        {name: value for name, value in row.items() if name != "attacks"}
        for row in some
        if len(modes[row["method"], row["mode"]]) == len(FEW)
    ]
    if not some:
        return ""
    return f"## On {', '.join(FEW)} alone, one seed\n\n{table(some, kinds=False)}"


HEADS = (
    *("method", "mode", "kind", "rows", "UA", "IRA", "CRA", "style kept"),
    *("drift", "steps", "seconds", "peak", "file"),
)
# The columns of prompts as people type them, and their keys in a row.
TYPED = {"UA typed": "sentences_ua", "drawn": "sentences_drawn", "beside kept": "beside_kept"}


def table(rows: list[dict], brief: bool = False, kinds: bool = True) -> str:
    """The rows' means as Markdown: a line for each method, mode, epoch and kind, and one over all
    kinds.

    The peak memory is a median, since a process may still hold memory of its earlier rows. brief:
    kinds only for the default modes, and only the paper's epoch and the last. kinds: whether each
    kind has a line.
    """
    # Rows measured before there were prompts as people type them have no such columns.
    new = {name: key for name, key in TYPED.items() if any(key in row for row in rows)}
    heads = (*HEADS[:-5], *new, *HEADS[-5:])
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        epochs = row.get("epochs", 0)
        if brief and epochs not in (0, 4, max(EPOCHS)):
            continue
        apart = kinds and not (brief and row["mode"] != "balanced")
        for kind in (row["kind"], "all") if apart else ("all",):
            groups.setdefault((row["method"], row["mode"], epochs, kind), []).append(row)
    order = ("object", "style", "character", "all")
    methods = list(METHODS)
    for (method, mode, epochs, kind), some in sorted(
        groups.items(),
        key=lambda item: (methods.index(item[0][0]), *item[0][1:3], order.index(item[0][3])),
    ):
        mode += f", {epochs} epoch{'s' * (epochs > 1)}" if epochs else ""

        def share(name: str, some=some) -> str:
            return f"{mean(row[name] for row in some):.1%}"

        def typed(key: str, some=some) -> str:
            found = [row[key] for row in some if key in row]
            return f"{mean(found):.1%}" if found else ""

        style = (
            share("style_kept", [r for r in some if r["kind"] == "object"])
            if kind in ("object", "all") and any(r["kind"] == "object" for r in some)
            else ""
        )
        cells = (
            *(method, mode, kind, str(len(some)), share("ua"), share("ira"), share("cra"), style),
            *(typed(key) for key in new.values()),
            f"{mean(r['drift_feature'] for r in some):.3f}",
            f"{mean(r['steps'] for r in some):.0f}",
            f"{mean(r['seconds'] for r in some):.1f}",
            f"{median(r['peak_mb'] for r in some) / 1024:.1f} GiB",
            f"{mean(r['file_bytes'] for r in some) / 1e6:.1f} MB",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *attack_table([row for row in rows if "attacks" in row])]
    lines.append(measured_on(rows))
    return "\n".join(lines)


def mean_of(name: str, rows: list[dict]) -> str:
    """A column's mean over the rows that have it, as a cell."""
    values = [row[name] for row in rows if name in row]
    return f"{mean(values):.0%}" if values else ""


def attack_table(rows: list[dict]) -> list[str]:
    """What brings a concept back: the mean for each method and mode, as Markdown."""
    if not rows:
        return []
    # Not every row has every column: rows of before have one look only.
    names = [*dict.fromkeys(name for row in rows for name in row["attacks"] if name != "own")]
    lines = [
        "| method | mode | rows | its own prompts | " + " | ".join(names) + " |",
        "|---" * (4 + len(names)) + "|",
    ]
    for method, modes in METHODS.items():
        for mode in modes:
            some = [r["attacks"] for r in rows if (r["method"], r["mode"]) == (method, mode)]
            if some:
                shares = (mean_of(name, some) for name in ("own", *names))
                lines.append(f"| {method} | {mode} | {len(some)} | " + " | ".join(shares) + " |")
    return [*lines, ""]

"""The tables of the benchmark of speed, and its page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from .kept import Kept, is_of
from .models import SIZES
from .phases import PHASES
from .plan import METHODS, Case, cases_of

Row = dict


def tables(kept: Kept) -> list[str]:
    """Everything that was measured, as Markdown: titles and tables in turn."""
    found = [machine_table(kept)]
    for name, size in SIZES.items():
        cases = [c for c in cases_of([name], None, kept.quick) if has_steps(c) and tried(kept, c)]
        if cases:
            found += [f"## {size.title}", step_table(kept, cases), phase_table(kept, cases)]
            found += [memory_table(kept, cases)]
    missing = [row for row in kept.rows if "why" in row]
    found += growth_tables(kept) + part_tables(kept)
    if missing:
        lines = [f"* {Case(row['case'], row['size']).key}: {row['why']}." for row in missing]
        found += ["## What could not be measured", "\n".join(dict.fromkeys(lines))]
    return [part for part in found if part]


def page(kept: Kept) -> str:
    """docs/perf.md, or what stands for it beside another JSON file."""
    loads = [row["load"] for row in kept.rows if "load" in row]
    busy = f" The machine's load was {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    rounds = max((row["round"] for row in kept.rows), default=0)
    threads = {row["threads"] for row in kept.rows if "threads" in row}
    used = f" Threads: {', '.join(map(str, sorted(threads)))}." if threads else ""
    parts = [
        "# Speed",
        f"Made by `{'`, `'.join(kept.commands)}`. Every case ran in a process of its own, "
        f"{'once' if rounds == 1 else f'the whole plan {rounds} times'}; a figure is the median. "
        "Only IconCanvas has weights that were learnt. The other models have their full size and "
        "random weights: what a step costs does not depend on what the weights mean.",
        EXPLAINED,
        *(["Measured quickly, with few steps: only to see that it works."] if kept.quick else []),
        *tables(kept),
        f"Measured on {kept.machine}.{used}{busy}",
    ]
    return "\n\n".join(parts) + "\n"


EXPLAINED = """\
* **plain**: the published loop, written plainly in float32 on a diffusers pipeline \
(testbed/plain). **x plain**: how many times as long a step of the pack's takes as one of this.
* **bare**: the passes that a step must make, the same prompts and latents with nothing around \
them, one backward pass, in the step's precision. **x bare**: how many times as long the step takes.
* **floor**: the operations of the bare passes at the rate of matrix products that the machine was \
measured at, in their precision; or the weights that they read, and what Adam reads and writes, at \
its bandwidth, where that takes longer. No step can take less. **x floor**: as above.
* **processor**: seconds of all cores, which other programs beside it hardly change; on a GPU what \
the processor does beside it.
* **first**: the first step and what comes before it: choosing an anchor, solving, encoding, \
drawing. Where a model is random, what it would draw are random latents, which take no time.
* **whole run**: the first step, all other steps that a run may take by default, and the pictures \
that it draws first, computed from this table's figures."""


def tried(kept: Kept, case: Case) -> list[Row]:
    return [row for row in kept.rows if is_of(row, case)]


def measured(kept: Kept, case: Case) -> list[Row]:
    """The rows of a case in the order of their rounds, without those that say why there is none."""
    return [row for row in tried(kept, case) if "why" not in row]


def has_steps(case: Case) -> bool:
    return case.name in ("drawing", "closed_form", "identify", "probe") or case.method in METHODS


def middle(rows: Iterable[Row], of: Callable[[Row], float]) -> float | None:
    """The median over the rounds; None where there is no row."""
    values = [of(row) for row in rows]
    return median(values) if values else None


def ratio(kept: Kept, case: Case, other: Case) -> float | None:
    """How many times as long a step of one case takes as one of the other, in the same round."""
    beside = {row["round"]: row for row in measured(kept, other)}
    pairs = [(row, beside.get(row["round"])) for row in measured(kept, case)]
    found = [one["seconds"] / two["seconds"] for one, two in pairs if two is not None]
    return median(found) if found else None


def floor_of(kept: Kept, row: Row) -> float | None:
    """Seconds that a step's operations take at the machine's rates, or its bytes at its bandwidth,
    whichever are more."""
    machines = measured(kept, Case("machine"))
    if not machines or "operations" not in row:
        return None
    same = [one for one in machines if one["round"] == row["round"]] or machines
    rates = same[0]["rates"]
    counts = row["operations"]
    if any(dtype not in rates for dtype in counts):
        return None
    # Rates are of as many threads as the machine's row had.
    share = row.get("threads", 1) / same[0].get("threads", 1)
    seconds = sum(count / rates[dtype] for dtype, count in counts.items()) / share
    return max(seconds, row.get("bytes", 0) / same[0]["bandwidth"])


def machine_table(kept: Kept) -> str:
    rows = measured(kept, Case("machine"))
    if not rows:
        return ""
    lines = ["## The machine", "", "| | measured |", "|---|---|"]
    for dtype in rows[0]["rates"]:
        rate = middle(rows, lambda row, dtype=dtype: row["rates"][dtype])
        lines.append(f"| matrix products in {dtype} | {rate / 1e12:.3f} TFLOP/s |")
    bandwidth = middle(rows, lambda row: row["bandwidth"])
    lines.append(f"| memory, read and written | {bandwidth / 1e9:.1f} GB/s |")
    return "\n".join(lines)


def step_table(kept: Kept, cases: Sequence[Case]) -> str:
    lines = [
        "| case | seconds | x plain | x bare | x floor | first | whole run | passes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        rows = measured(kept, case)
        if not rows:
            lines.append(f"| {case.name} | {kept.why(case)} | | | | | | |")
            continue
        row = rows[-1]
        plain = Case(f"plain {case.method}", case.size)
        of_plain = None if case.is_plain or not case.mode else ratio(kept, case, plain)
        of_bare = [one["seconds"] / one["bare_seconds"] for one in rows if "bare_seconds" in one]
        floors = [(one["seconds"], floor_of(kept, one)) for one in rows]
        of_floor = [seconds / floor for seconds, floor in floors if floor]
        unit = row.get("unit", "step")
        batch = f" of {row['batch']}" if row.get("batch", 1) > 1 else ""
        first = middle(rows, lambda one: one["first"]["seconds"])
        passes = ", ".join(f"{count} {what}" for what, count in row.get("passes", {}).items())
        cells = [
            case.name,
            f"{short(middle(rows, lambda one: one['seconds']))} a {unit}{batch}",
            times(of_plain),
            times(median(of_bare) if of_bare else None),
            times(median(of_floor) if of_floor else None),
            short(first),
            whole_run(kept, case, rows),
            passes,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def whole_run(kept: Kept, case: Case, rows: list[Row]) -> str:
    """The seconds of a whole run, computed; empty where the figures do not say."""
    row, seconds = rows[-1], middle(rows, lambda one: one["seconds"])
    if not row.get("steps"):
        return ""
    drawing = middle(measured(kept, Case("drawing", case.size)), lambda one: one["seconds"])
    if row["drawn"] and drawing is None:
        return ""
    before = middle(
        rows, lambda one: one["first"]["seconds"] - one["first"]["phases"].get("drawing", 0.0)
    )
    total = (row["steps"] - 1) * seconds + row["drawn"] * (drawing or 0.0)
    if case.name == "identify":
        return f"{short(row['steps'] * seconds)} s"
    if case.name == "closed_form":
        return f"{short(seconds)} s"
    return f"{short(before + total)} s, {row['steps']} steps"


def phase_table(kept: Kept, cases: Sequence[Case]) -> str:
    """Seconds of each phase in the step with the median time."""
    lines = [
        f"| seconds of | {' | '.join(PHASES)} | the rest | whole | processor | bare, processor |",
        "|---" * (len(PHASES) + 5) + "|",
    ]
    for case in cases:
        rows = measured(kept, case)
        if rows:
            row = sorted(rows, key=lambda one: one["phases_of"])[(len(rows) - 1) // 2]
            names = ("cpu_seconds", "bare_cpu_seconds")
            cpu = [middle((o for o in rows if n in o), lambda o, n=n: o[n]) for n in names]
            cells = cells_of(row["phases"], row["phases_of"])
            lines.append(f"| {case.name} | {cells} | {' | '.join(map(short, cpu))} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def cells_of(phases: dict[str, float], whole: float) -> str:
    own = [phases.get(name) for name in PHASES]
    rest = max(0.0, whole - sum(value for value in own if value))
    return " | ".join("" if not value else short(value) for value in (*own, rest, whole))


def memory_table(kept: Kept, cases: Sequence[Case]) -> str:
    """Peaks, and what the run took beyond the loaded model beside the pack's estimate of it."""
    lines = [
        "| case | peak | before | taken | estimate | of it | by the driver | precision |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        rows = measured(kept, case)
        if not rows:
            continue
        row = max(rows, key=lambda one: one["peak_mb"])
        taken, estimate = row["peak_mb"] - row["base_mb"], row.get("estimate_mb")
        how = row.get("precision", "")
        how += ", blocks recomputed" if row.get("recomputed") else ""
        cells = [
            case.name,
            f"{row['peak_mb']} MiB",
            f"{row['base_mb']} MiB",
            f"{taken} MiB",
            f"{estimate} MiB" if estimate else "",
            f"{taken / estimate:.2f}" if estimate else "",
            f"{row['driver_mb']} MiB" if "driver_mb" in row else "",
            how,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def growth_tables(kept: Kept) -> list[str]:
    from .growth import GROWTH

    lines = []
    for what in GROWTH:
        rows = measured(kept, Case(f"growth {what}", "iconcanvas"))
        if not rows:
            continue
        cells, pairs = [], []
        for i, point in enumerate(rows[0]["points"]):
            if "why" in point:
                cells.append(f"{point['x']}: {point['why']}")
                continue
            seconds = median(row["points"][i]["seconds"] for row in rows if has_point(row, i))
            pairs.append((point["x"], seconds))
            cells.append(f"{point['x']}: {short(seconds)} s, {point['peak_mb']} MiB")
        lines.append(f"| {rows[0]['of']} | {'; '.join(cells)} | {power(pairs)} |")
    if not lines:
        return []
    head = ["| | seconds, and memory beside what was there | twice as many take |", "|---|---|---|"]
    return ["## How it grows", "\n".join(head + lines)]


def has_point(row: Row, i: int) -> bool:
    return len(row["points"]) > i and "seconds" in row["points"][i]


def power(pairs: Sequence[tuple[float, float]]) -> str:
    """How many times as long twice as much takes, by the last two points."""
    if len(pairs) < 2:
        return ""
    (one, before), (two, after) = pairs[-2:]
    return f"{2 ** (math.log(after / before) / math.log(two / one)):.2f} x"


def part_tables(kept: Kept) -> list[str]:
    """The cases that have several figures each: files of erasures, and the import."""
    found = []
    sizes = ["", *SIZES]
    for name, title, unit in PARTS:
        cases = [Case(name, size) for size in sizes]
        rows = {case: measured(kept, case) for case in cases}
        rows = {case: some for case, some in rows.items() if some}
        if not rows:
            continue
        heads = [SIZES[case.size].title if case.size else unit for case in rows]
        lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
        for part in next(iter(rows.values()))[0]["parts"]:
            cells = [
                short(middle(some, lambda row, part=part: row["parts"][part]))
                for some in rows.values()
            ]
            lines.append(f"| {part} | {' | '.join(cells)} |")
        found += [f"## {title}", "\n".join(lines)]
    return found


PARTS = (
    ("erasures", "Erasures, in seconds", ""),
    ("import", "Start of ComfyUI", "seconds"),
    ("wan", "Memory of Few-Shot Encoder Unlearn on Wan 2.1 1.3B with UMT5-XXL, estimated", "MiB"),
)
"""The cases with several figures each: their titles, and what the figures are."""


def short(seconds: float | None) -> str:
    """Three digits of a number of seconds."""
    if seconds is None:
        return ""
    if seconds < 0.001:
        return "0.000"
    digits = max(0, 2 - math.floor(math.log10(seconds)))
    return f"{seconds:.{min(digits, 3)}f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} x"

"""The page docs/verdict.md from the rows of docs/verdict.json."""

from __future__ import annotations

from statistics import mean

from ..host.machine import measured_on
from .verdicts_plan import CHECKED, CUT_SHORT, KNOWN, SHOTS, UNKNOWN_WORD


def counted(row: dict) -> str:
    """The verdict that follows from the judge's counts; unknown if it sees nothing before."""
    from unlearn.evaluate.verdict import UNKNOWN, word

    before, after = row["judge_before"], row["judge_after"]
    return word(before, after) if before else UNKNOWN


def table(rows: list[dict]) -> str:
    lines = [
        "| concept | trained by | step | verdict | by the judge's counts | shown, of 4 | "
        "seen by the judge | rows | CPU, s | of the training's |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        how = row["method"] + (f", anchor {row['anchor']}" if row["anchor"] else "")
        how += ", pictures connected" if row["given"] else ""
        after = row.get("after", "not drawn")
        cells = [row["concept"], how, f"{row['step']}{', the end' if row['end'] else ''}"]
        cells += [row["verdict"], counted(row), f"{row['before']} to {after}"]
        cells += [f"{row['judge_before']} to {row['judge_after']}", row["rows"]]
        share = "" if row["case"] in CUT_SHORT else f"{row['cpu'] / row['training_cpu']:.0%}"
        cells += [f"{row['cpu']:.1f}", share]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def agreement(rows: list[dict]) -> list[str]:
    both = [(row["verdict"], counted(row)) for row in rows]
    alike = sum(one == other for one, other in both)
    falsely = sum(one == "gone" != other for one, other in both)
    late = sum(one == "not gone" and other == "gone" for one, other in both)
    ends = [row for row in rows if row["end"] and row["method"] == "few_shot"]
    cost, of = (mean(row[key] for row in ends) for key in ("cpu", "training_cpu"))
    return [
        f"* In {alike} of {len(rows)} rows the verdict is what the judge's counts would say.",
        f'* In {falsely} rows it is "gone" and the judge still sees the concept.',
        f'* In {late} rows it is "not gone" and the judge sees the concept nowhere.',
        f"* At the end of few_shot it takes {cost:.1f} s of CPU time and "
        f"{mean(row['rows'] for row in ends):.0f} rows of the denoiser on average: {cost / of:.0%} "
        f"of the {of:.1f} s of the training.",
    ]


def checks_table(rows: list[dict]) -> str:
    found = {(row["pictures"], row["against"]): row for row in rows}
    lines = [
        "| pictures | " + " | ".join(CHECKED[:-1]) + " | other pictures, right word |",
        "|---" * (1 + len(CHECKED)) + "|",
    ]
    for concept in dict.fromkeys(row["pictures"] for row in rows):
        cells = []
        for against in CHECKED:
            row = found.get((concept, against))
            named = f" ({row['word']})" if row and against == "wrong" else ""
            cells.append(f"{row['answer']}{named}" if row else "")
        lines.append(f"| {concept} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(rows: list[dict], checks: list[dict]) -> str:
    known = [row for row in rows if row["concept"] in KNOWN]
    passed = [row["cpu"] for row in checks if row["answer"] == "pass"]
    others = [row["cpu"] for row in checks if row["answer"] != "pass"]
    return "\n".join(
        [
            "# The verdict",
            "",
            "Made by `python -m testbed verdicts`. Trainings on IconCanvas in mode balanced; the "
            "model draws the pictures itself unless they are connected. The original model says "
            "which of 4 pictures show the concept, before and after. The separate judge looks at "
            "the same pictures. They are drawn in 8 steps, and the judge learnt from cleaner ones, "
            "so it misses some that show the concept.",
            "",
            table(rows),
            "",
            "For the concepts that IconCanvas knows:",
            "",
            *(agreement(known) if any(row["end"] for row in known) else []),
            "",
            "## The check of connected pictures",
            "",
            f"{SHOTS} pictures of a thing or a character under the right word, under a wrong one, "
            f"and under {UNKNOWN_WORD}, which the model does not know. The *other pictures* are "
            "chequered in two colours.",
            "",
            checks_table(checks),
            "",
            f"The check takes {mean(passed):.1f} s of CPU time where the pictures pass, else "
            f"{mean(others):.1f} s."
            if passed and others
            else "",
            "",
            measured_on([*rows, *checks], ", one thread"),
            "",
        ]
    )

"""Every judge there is: those of this folder, of installed packages, and those registered.

A package offers one as an entry point of the group `concept_unlearn.judges`. Its name is the key,
and what it points to is any object with `name`, `settings` and `look`, with or without `check` and
`version` (see judge.py). It need not import this pack, and is imported only when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module, metadata
from pkgutil import iter_modules
from typing import Any

from .judge import Judge
from .original import JUDGE as ORIGINAL

GROUP = "concept_unlearn.judges"


def found(package: str) -> dict[str, Judge]:
    """The judges of a package's files, by key. The original model comes first."""
    files = iter_modules(import_module(package).__path__)
    names = [file.name for file in files if f"{package}.{file.name}" != __name__]
    modules = [import_module(f"{package}.{name}") for name in names]
    judges = [module.JUDGE for module in modules if hasattr(module, "JUDGE")]
    judges.sort(key=lambda one: (one.key != ORIGINAL.key, one.key))
    return {one.key: one for one in judges}


JUDGES = found(__package__)
"""Those of this folder, and those that were registered."""


def offered() -> dict[str, metadata.EntryPoint]:
    """What installed packages offer, by key. None is imported. A key that is taken is left out."""
    return {one.name: one for one in metadata.entry_points(group=GROUP) if one.name not in JUDGES}


def keys() -> list[str]:
    """The keys of all judges, the original model's first."""
    return [*JUDGES, *sorted(offered())]


def judge_of(key: str) -> Judge:
    """The judge of a key. Raises ValueError where there is none, or it is not one."""
    if key in JUDGES:
        return JUDGES[key]
    points = offered()
    if key not in points:
        raise ValueError(
            f"There is no judge {key!r} here; install the package that has it, or take one of: "
            f"{', '.join(keys())}."
        )
    try:
        made = points[key].load()
    except Exception as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ValueError(
            f"The judge {key!r} cannot be loaded from {points[key].value} ({why.rstrip('.')}); "
            "install its package again, or choose another judge."
        ) from error
    return as_judge(key, made)


def register(judge: Any, key: str = "") -> Judge:
    """Add a judge for as long as Python runs, and return it.

    judge: a Judge, or any object as an entry point may have. key: what it is called; "" takes its
    own. Raises ValueError where it is no judge, or another has its key.
    """
    made = as_judge(key or getattr(judge, "key", ""), judge)
    if JUDGES.get(made.key, made) != made:
        raise ValueError(f"There is a judge {made.key!r} already; give this one another key.")
    JUDGES[made.key] = made
    return made


def as_judge(key: str, given: Any) -> Judge:
    """Any object with the attributes of a judge as one. Raises ValueError where it is none."""
    name, settings = getattr(given, "name", None), getattr(given, "settings", {})
    wrong = ""
    if not key or not isinstance(key, str):
        wrong = "it has no key"
    if not isinstance(name, str) or not name:
        name, wrong = "", "it has no name"
    elif not callable(getattr(given, "look", None)):
        wrong = "it has no function look(question)"
    elif not isinstance(settings, Mapping) or not _is_json(settings):
        wrong = "its settings are no dictionary that JSON can hold"
    if wrong:
        raise ValueError(f"{key or given!r} cannot judge: {wrong}. See judges in docs/judges.md.")
    more = {one: getattr(given, one) for one in ("check", "version") if hasattr(given, one)}
    # By way of JSON, so that a record that was written and read again is the same.
    return Judge(key, name, given.look, json.loads(json.dumps(dict(settings))), **more)


def _is_json(settings: Mapping) -> bool:
    try:
        json.dumps(dict(settings), allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True

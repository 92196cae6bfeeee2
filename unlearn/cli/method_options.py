"""The options of `erase` that are a method's settings: made from what the methods declare."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..core.kind import current_kind
from ..methods.parts.method import Method
from ..methods.parts.settings import Setting
from . import options
from .output import Failure

OLD_OPTIONS = {"kind": ("--task",)}
"""Names that an option is also known by, and that the help does not show."""
Named = Mapping[str, Setting]
"""One option, by the names of the methods that have it."""


def all_options(methods: Mapping[str, Method]) -> dict[str, dict[str, Setting]]:
    """{an option's name: {a method's name: its setting}}, as the methods declare them."""
    found: dict[str, dict[str, Setting]] = {}
    for method in methods.values():
        for setting in method.described.values():
            if setting.option is not None:
                found.setdefault(setting.option, {})[method.name] = setting
    return found


def add(parser: argparse._ActionsContainer, methods: Mapping[str, Method]) -> None:
    """Add the options of all methods, each once."""
    for name, settings in all_options(methods).items():
        reader = _reader(name, settings)
        text = _help(settings, len(methods)).replace("%", "%%")
        parser.add_argument(f"--{name}", help=text, **reader)
        if old := OLD_OPTIONS.get(name):
            parser.add_argument(*old, dest=name, help=argparse.SUPPRESS, **reader)


def chosen(methods: Mapping[str, Method], args: argparse.Namespace) -> tuple[Method, Any]:
    """(the method, its settings) that were asked for; what was not given is the method's own.

    Raises Failure for an option that this method or this mode does not have.
    """
    method = methods[args.method]
    own = {setting.option: setting for setting in method.described.values() if setting.option}
    every = {name: getattr(args, name.replace("-", "_")) for name in all_options(methods)}
    given = {name: value for name, value in every.items() if value is not None}
    mode = given.get("mode", own["mode"].default if "mode" in own else None)
    for name, value in given.items():
        if name not in own:
            raise Failure(f"{method.name} has no setting --{name}; leave it out.")
        modes, choices, least = own[name].modes, own[name].choices, own[name].at_least
        if modes and mode not in modes:
            raise Failure(
                f"--{name} is a setting of mode {' and '.join(modes)}; leave it or change --mode."
            )
        if isinstance(value, str) and choices and value not in choices:
            raise Failure(f"{method.name} takes one of {', '.join(choices)}; correct --{name}.")
        counted = own[name].turned_on is None and not isinstance(value, str)
        if counted and least is not None and value < least:
            raise Failure(f"{method.name} takes at least {least:g}; correct --{name}.")
    values = {own[name].name: value for name, value in given.items()}
    return method, method.settings(**values)


def _reader(name: str, settings: Named) -> dict[str, Any]:
    """How an option's text is read: the arguments of `add_argument`."""
    one = next(iter(settings.values()))
    if one.type is bool:
        return {"action": argparse.BooleanOptionalAction, "default": None}
    if one.turned_on is not None:
        return {
            "type": options.seconds,
            "nargs": "?",
            "const": one.turned_on,
            "metavar": "SECONDS",
        }
    if one.type is tuple:
        return {"type": options.words(one.each), "metavar": "WORDS"}
    if one.type is int:
        least = min(int(setting.at_least or 0) for setting in settings.values())
        if one.choices:
            return {"type": options.whole_or(one.choices, least), "metavar": "N"}
        return {"type": options.whole(least), "metavar": "N"}
    if one.type is float:
        return {"type": options.number, "metavar": "X"}
    if one.choices:
        choices = dict.fromkeys(c for setting in settings.values() for c in setting.choices)
        return {"type": current_kind if name == "kind" else str, "choices": tuple(choices)}
    return {"type": options.anchor, "metavar": "WORD"}


def _help(settings: Named, methods: int) -> str:
    """What an option does. What is not so for all methods is said with their names."""
    said: dict[tuple[str, tuple[str, ...]], dict[str, Setting]] = {}
    for method, setting in settings.items():
        said.setdefault((_sentence(setting), setting.modes), {})[method] = setting
    texts = []
    for (text, modes), some in said.items():
        whose = [] if len(some) == methods else [*some]
        whose += [f"mode {' and '.join(modes)}"] if modes else []
        texts.append(f"{', '.join(whose)}{': ' if whose else ''}{text}{_usual(some)}")
    return "; ".join(texts)


def _sentence(setting: Setting) -> str:
    text = setting.help.rstrip(".")
    return text if text.split(":")[0] in setting.choices else text[:1].lower() + text[1:]


def _usual(settings: Named) -> str:
    """The value of an option that is not given."""
    values: dict[str, list[str]] = {}
    for method, setting in settings.items():
        values.setdefault(setting.usual, []).append(method)
    if len(values) == 1:
        usual = next(iter(values))
    else:
        usual = "; ".join(f"{', '.join(names)} {value}" for value, names in values.items())
    on = next(iter(settings.values())).turned_on
    without = "" if on is None else f"; without a number: {on:g}"
    return (f" (default: {usual})" if usual else "") + without

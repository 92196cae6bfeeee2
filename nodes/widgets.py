"""Widgets made from a method's settings, and settings made from what the widgets hold."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from comfy_api.latest import io

from ..unlearn.methods.parts.method import Method
from ..unlearn.methods.parts.settings import Setting
from ..unlearn.prompts.typed import one_word, split_words

MOST = 2**31 - 1
"""Where a number's widget ends, unless its setting says so."""


def method_widgets(method: Method) -> dict[str, io.Input]:
    """The widgets of a method's settings, by their names, in the order of its settings."""
    shown = (setting for setting in method.described.values() if setting.widget is not None)
    return {one.id: one for setting in shown for one in widgets(setting)}


def method_settings(method: Method, values: Mapping[str, Any]) -> Any:
    """The settings that the widgets ask for. values: what each widget holds."""
    shown = (setting for setting in method.described.values() if setting.widget is not None)
    return method.settings(**{setting.name: value(setting, values) for setting in shown})


def advanced(*inputs: io.Input, but: Collection[str] = ()) -> list[io.Input]:
    """The inputs. A node shows their widgets among the advanced ones only, but for those that are
    named. Browsers without such show all."""
    for one in inputs:
        if isinstance(one, io.WidgetInput) and one.id not in but:
            one.advanced = True
    return [*inputs]


def widgets(setting: Setting) -> list[io.Input]:
    """One widget, or of a number that can be turned off two."""
    name, default = setting.widget, setting.default
    shared = {"tooltip": tooltip(setting), "optional": setting.optional or None}
    if (setting.label or setting.name) != name:
        shared["display_name"] = setting.label or setting.name
    low = setting.at_least or 0
    high = MOST if setting.at_most is None else setting.at_most
    if setting.turned_on is not None:
        seconds = f"How many seconds, where {name} is on."
        more = {"default": setting.turned_on, "min": low, "max": high, "step": 1.0}
        return [
            io.Boolean.Input(name, default=bool(default), **shared),
            io.Float.Input(f"{name}_seconds", **{**shared, "tooltip": seconds}, **more),
        ]
    if setting.choices:
        own = [setting.own_choice] if setting.may_be_none else []
        default = setting.own_choice if default is None else default
        options = [*own, *setting.choices]
        return [io.Combo.Input(name, options=options, default=default, **shared)]
    if setting.type is bool:
        return [io.Boolean.Input(name, default=default, **shared)]
    if setting.type is int:
        if setting.may_be_none:
            default, low = default or 0, 0
        if name == "seed":
            # The host's default would draw a new one, and train anew, at every queueing.
            shared["control_after_generate"] = False
        return [io.Int.Input(name, default=default, min=int(low), max=int(high), **shared)]
    if setting.type is float:
        more = {"default": default, "min": float(low), "max": float(high), "step": 0.01}
        return [io.Float.Input(name, **more, **shared)]
    default = ", ".join(default) if setting.type is tuple else default
    return [io.String.Input(name, default=default, **shared)]


def value(setting: Setting, values: Mapping[str, Any]) -> Any:
    """What its widget says, as the method takes it. Raises ValueError for words that it cannot."""
    held = values[setting.widget]
    if setting.turned_on is not None:
        return values[f"{setting.widget}_seconds"] if held else 0.0
    if setting.type is tuple:
        return tuple(split_words(held, setting.each))
    if setting.choices:
        return None if setting.may_be_none and held == setting.own_choice else held
    if setting.type is str:
        return one_word(held)
    return None if setting.may_be_none and held == 0 else held


def tooltip(setting: Setting) -> str:
    """Its help, with the modes that use it, and what stands for the method's own value."""
    text = setting.help
    if setting.modes:
        text = f"{', '.join(setting.modes)}: {text[:1].lower()}{text[1:]}"
    if setting.may_be_none:
        own = f" ({setting.own})" if setting.own else ""
        text += f" {setting.own_choice if setting.choices else 0}: the method's own{own}."
    return text

"""Settings that explain themselves: the node, the command and the benchmark are made from them.

A method's settings are a frozen dataclass. Each field is a `setting`, which a user sees as a widget
and as an option, or a `constant`, which only Python can change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ...core.kind import Kind
from ...core.model import DiffusionModel

Mode = Literal["balanced", "paper"]
BALANCED, PAPER = ("balanced",), ("paper",)  # for `modes`


class MethodSettings:
    """What a run asks of the settings of every method. A method overrides what differs."""

    kind: Any
    trainable: Any
    batch: Any
    rank: int
    seed: int
    anchor: Any = ""

    def fitted(self, model: DiffusionModel) -> Any:
        """The settings with that decided which depends on the model."""
        return self

    @property
    def weights(self) -> str:
        """Which weights are trained (see core/trainable.py)."""
        return self.trainable

    @property
    def gradients(self) -> bool:
        """Whether gradients pass through the model."""
        return True

    @property
    def rows(self) -> int:
        """Latents that are kept for one backward pass, at most."""
        return self.batch

    @property
    def prompts_kept(self) -> int:
        """Prompts whose encoding is kept for one backward pass, at most."""
        return 0

    @property
    def uses_anchor(self) -> bool:
        """Whether concepts are drawn to the anchor."""
        return True

    @property
    def empty_anchor(self) -> str:
        """What an empty anchor stands for: CLOSEST, or "" for what is the method's own."""
        return ""

    @property
    def named_as(self) -> Kind:
        """The kind whose sentences name the concept."""
        return self.kind


@dataclass(frozen=True)
class Setting:
    """One field of a method's settings, as a user meets it."""

    name: str
    default: Any
    type: type
    """int, float, bool, str (a word) or tuple (words)."""
    choices: tuple[str, ...]
    """All values, or those a number may be replaced by. Empty: no choice."""
    may_be_none: bool
    """Whether the method has a value of its own, which is None here."""
    help: str
    modes: tuple[str, ...] = ()
    """The only modes that use it. Empty: all."""
    at_least: float | None = None
    at_most: float | None = None
    """Where the widget ends. The command takes more."""
    option: str | None = None
    """Its name in the command. None: it has no option."""
    widget: str | None = None
    """Its name in the node. None: it has no widget."""
    label: str | None = None
    """What the node shows as its name. None: its field's name."""
    optional: bool = False
    """Whether prompts of the API may leave the widget out."""
    own: str = ""
    """The method's own value in words, where that is None."""
    own_choice: str = "auto"
    """How the widget's list names the method's own value."""
    turned_on: float | None = None
    """Of a number that is off at 0: its value where it is only turned on."""
    each: str = "word"
    """What one of several words is called in a message."""

    @property
    def usual(self) -> str:
        """Its default in words."""
        if self.default is None:
            return self.own
        return "" if self.default in ("", (), 0.0) and self.type is not int else str(self.default)


def setting(
    default: Any, help: str, *, option: str | None = "", widget: str | None = "", **more: Any
) -> Any:
    """A field that a user sees. option, widget: its names there; empty: the field's own, in the
    command with - for _. None: it is not there.

    more: see Setting.
    """
    return field(
        default=default, metadata={"help": help, "option": option, "widget": widget, **more}
    )


def constant(default: Any, help: str, **more: Any) -> Any:
    """A field that only Python can change."""
    return setting(default, help, option=None, widget=None, **more)


def settings_of(cls: Any) -> dict[str, Setting]:
    """The settings of a method's dataclass, by the names of their fields.

    Raises TypeError for a field that has no help or no default.
    """
    hints = get_type_hints(cls)
    found = {}
    for one in fields(cls):
        if "help" not in one.metadata or one.default is MISSING:
            raise TypeError(f"{cls.__name__}.{one.name} needs a default and a help: use setting().")
        found[one.name] = _described(one.name, one.default, hints[one.name], one.metadata)
    return found


def _described(name: str, default: Any, hint: Any, metadata: Mapping[str, Any]) -> Setting:
    types = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    choices = tuple(c for t in types if get_origin(t) is Literal for c in get_args(t))
    plain = [t for t in types if get_origin(t) is not Literal and t is not type(None)]
    kind = get_origin(plain[0]) or plain[0] if plain else str
    more = dict(metadata)
    usual = {"option": name.replace("_", "-"), "widget": name}
    for place, own in usual.items():
        more[place] = own if more[place] == "" else more[place]
    return Setting(name, default, kind, choices, type(None) in types, **more)

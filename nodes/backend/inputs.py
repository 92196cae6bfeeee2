"""Checks each value that a node receives against the input in the node's schema."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from comfy_api.latest import io

from ...unlearn.core.images import check_images
from .checks import check_socket, shown

# Most characters of a text. More is a mistake, and tokenising it would take minutes.
LINE, PAGE = 4_000, 100_000


def checked(one: io.Input, value: Any) -> Any:
    """The value, checked and converted. Raises ValueError with one sentence if it is not valid.

    Widgets keep their own limits, but a value from a link or from the API does not pass a widget.
    """
    check = WIDGETS.get(type(one))
    return check(one, value) if check else check_socket(one.id, one.get_io_type(), value)


def named(one: io.Input) -> str:
    """An input by the name that the node shows, and by its own where that is another."""
    shown_as = one.display_name or one.id
    return one.id if shown_as == one.id else f"{shown_as} ({one.id})"


def _whole_number(one: io.Int.Input, value: Any) -> int:
    step = one.step or 1
    what = f"a multiple of {step}" if step > 1 else "a whole number"
    wanted = f"give {what} from {one.min} to {one.max}"
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ValueError(f"{named(one)} is {shown(value)}: {wanted}.")
    if not one.min <= value <= one.max or (value - one.min) % step:
        raise ValueError(f"{named(one)} is {shown(int(value))}: {wanted}.")
    return int(value)


def _number(one: io.Float.Input, value: Any) -> float:
    wanted = f"give a number from {one.min:g} to {one.max:g}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{named(one)} is {shown(value)}: {wanted}.")
    if not one.min <= value <= one.max:  # NaN lies in no range
        raise ValueError(f"{named(one)} is {shown(value)}: {wanted}.")
    return float(value)


def _switch(one: io.Boolean.Input, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{named(one)} is {shown(value)}: give true or false.")
    return value


def _choice(one: io.Combo.Input, value: Any) -> str:
    value = _text(one, value)
    if value not in one.options:
        few = len(one.options) <= 12
        which = ", ".join(one.options) if few else "one of those that the node offers"
        raise ValueError(f"{named(one)} is {shown(value)}: choose {which}.")
    return value


def file_name(one: io.Combo.Input, value: Any) -> str:
    """The name of a file. Only its reader checks that the file exists, because the host's list of
    files may be out of date."""
    return _text(one, value)


def _text(one: io.Input, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{named(one)} is {shown(value)}: give a text.")
    longest = PAGE if getattr(one, "multiline", False) else LINE
    if len(value) > longest:
        raise ValueError(
            f"{named(one)} is a text of {len(value):,} characters: give one of at most {longest:,}."
        )
    if "\0" in value:
        raise ValueError(f"{named(one)} holds a null character, which no text has: type it anew.")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"{named(one)} holds half a character (a surrogate): type it anew.")
    return value


WIDGETS: dict[type, Callable[[Any, Any], Any]] = {
    io.Int.Input: _whole_number,
    io.Float.Input: _number,
    io.Boolean.Input: _switch,
    io.Combo.Input: _choice,
    io.String.Input: _text,
}


# Lists


def only(name: str, values: list) -> Any:
    """The single value in a list. Raises ValueError if there are more or none."""
    if len(values) != 1:
        raise ValueError(
            f"{name} is a list of {len(values)}, but this node takes a list for pictures only and "
            "runs once: give it one value, and use another node for each of the others."
        )
    return values[0]


def picture_set(name: str, values: list) -> list[torch.Tensor]:
    """The batches in a list, (N, H, W, 3 or 4) each; a grey batch gets three channels.

    Raises ValueError with one sentence if the list is empty or holds anything but pictures.
    """
    found = []
    for value in values:
        if not isinstance(value, torch.Tensor):
            raise ValueError(
                f"{name} is {shown(value)}, no picture: connect the output of a Load Image node."
            )
        if value.numel() == 0 or value.is_complex():
            raise ValueError(
                "Images must be a batch of shape (N, height, width, 3) and of real numbers, but "
                f"{name} has shape {tuple(value.shape)} and the type {value.dtype}; connect the "
                "output of a Load Image node."
            )
        grey = value.ndim == 4 and value.shape[-1] == 1
        found.append(value.expand(-1, -1, -1, 3) if grey else value)
        if value.ndim != 4 or found[-1].shape[-1] not in (3, 4):
            check_images(found[-1])  # raises the error
    if not found:
        raise ValueError(f"{name} is an empty list: the node that fills it found no picture.")
    return found


def one_batch(name: str, batches: list[torch.Tensor]) -> torch.Tensor:
    """All pictures as one batch, (N, H, W, 3). A single batch is returned as it is.

    Raises ValueError if the pictures have several sizes.
    """
    if len(batches) == 1:
        return batches[0]
    sizes = list(dict.fromkeys((one.shape[2], one.shape[1]) for one in batches))
    if len(sizes) > 1:
        (width, height), (other_width, other_height), *_ = sizes
        raise ValueError(
            f"{name} holds pictures of {len(sizes)} sizes, such as {width} x {height} and "
            f"{other_width} x {other_height}: bring them to one size, for example with Upscale "
            "Image."
        )
    return torch.cat([one[..., :3].float().cpu() for one in batches])


def single_pictures(name: str, batches: list[torch.Tensor]) -> list[torch.Tensor]:
    """Each picture by itself, (H, W, 3), of any size. Raises ValueError as `check_images`."""
    for number, one in enumerate(batches, 1):
        try:
            check_images(one)
        except ValueError as error:
            where = f", number {number} of the list" if len(batches) > 1 else ""
            raise ValueError(f"{name}{where}: {error}") from None
    return [picture[..., :3] for one in batches for picture in one]

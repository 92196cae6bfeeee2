"""The erasures that the loaders offer: which files they are, and where they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.utils
import folder_paths
from comfy_api.latest import io

from ..unlearn.core.erasure import NETWORK, ErasureError
from ..unlearn.core.header import Header, header
from ..unlearn.core.model import Part
from ..unlearn.core.record import name_of as printed
from .cache import ENDING

FOLDERS = ("loras", "text_encoders")
NONE = "none"
"""What a list offers where there is no erasure, and for a row that is to stay empty."""
MISSING = (
    "There is no erasure yet: run one of the unlearn nodes, or put an erasure file into "
    "models/loras. Then press R to refresh the list."
)
NAMED = 5  # the most files that a message names


def erasure_choices(part: Part | None = None, with_encoders: bool = False) -> list[str]:
    """The names of all erasures that change this part, newest first; ["none"] if there are none.

    part: None takes those of either. with_encoders: whether whole text encoders, which others may
    have erased, follow. A name that several folders have appears once and means the first folder's
    file, as in `find_file`.
    """
    erasures, encoders = [], []
    for name, file, found in _files():
        if found.is_erasure and (part is None or part in found.parts):
            erasures.append((name, file))
        elif with_encoders and found.is_encoder:
            encoders.append((name, file))
    names = [name for files in (erasures, encoders) for name, _ in sorted(files, key=_newest)]
    return names or [NONE]


def erasure_input(
    name: str,
    tooltip: str,
    part: Part | None = None,
    with_encoders: bool = False,
    may_be_none: bool = False,
    lets_through: bool = False,
) -> io.Combo.Input:
    """A widget that offers them. may_be_none: whether it begins with "none". lets_through: whether
    it ends with it."""
    options = erasure_choices(part, with_encoders)
    if options == [NONE]:
        tooltip = f"{MISSING} {tooltip}"
    elif may_be_none:
        options = [NONE, *options]
    elif lets_through:
        options = [*options, NONE]
    return io.Combo.Input(name, options=options, optional=may_be_none or None, tooltip=tooltip)


def nothing_chosen() -> str:
    """A sentence for a node with "none" in its list."""
    if erasure_choices() == [NONE]:
        return MISSING
    return "No erasure is chosen: choose one, or press R to refresh the list."


def check_file(name: str) -> None:
    """Raises ErasureError if no models folder has it and it is not "none"."""
    if name != NONE:
        find_file(name)


def find_file(name: str) -> Path:
    """The path of an erasure file. Raises ErasureError if no models folder has it."""
    if name == NONE:
        raise ErasureError(nothing_chosen())
    for folder in FOLDERS:
        # Never open what the list does not offer: files with other endings may run code.
        path = name.endswith(ENDING) and folder_paths.get_full_path(folder, name)
        if path:
            return Path(path)
    raise ErasureError(
        f"There is no {printed(name) or 'such file'} in models/loras, output/loras or "
        "models/text_encoders; choose another."
    )


def changed_at(name: str | None) -> str:
    """The file's time: a file that changed is read again. name is None when it comes from another
    node; the host compares that itself."""
    return "" if name in (None, NONE) else f"{find_file(name).stat().st_mtime_ns}"


@contextmanager
def naming_others(patcher, part: Part) -> Iterator[None]:
    """Where an erasure is refused, the message also names those that fit.

    patcher: the MODEL, or the CLIP's patcher.
    """
    try:
        yield
    except ErasureError as error:
        raise ErasureError(f"{error} {those_that_fit(patcher, part)}".rstrip()) from None


def those_that_fit(patcher, part: Part) -> str:
    """A sentence that names the erasures whose weights a MODEL, or a CLIP's patcher, has.

    "" if there are none.
    """
    own = set(patcher.model.state_dict())
    names = [
        name
        for name in erasure_choices(part)
        if name != NONE and _fits(patcher.model, own, part, header(find_file(name)))
    ]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"These fit: {', '.join(names[:NAMED])}{more}." if names else ""


def _fits(model, own: set[str], part: Part, found: Header) -> bool:
    """own: the names of the model's weights."""
    keys = [key for key in found.shapes if key.startswith(NETWORK) == (part == "denoiser")]
    return all(key in own and _size(model, key) == found.shapes[key] for key in keys)


def _size(model, key: str) -> tuple[int, int]:
    """A weight's rows and columns. Not from the state dict: it packs two values of a quantised
    weight into one number."""
    shape = comfy.utils.get_attr(model, key).shape
    return (shape[0] if shape else 1), math.prod(shape[1:])


def _files() -> Iterator[tuple[str, Path, Header]]:
    """Every safetensors file that the host knows in FOLDERS."""
    seen = set()
    for folder in FOLDERS:
        for name in folder_paths.get_filename_list(folder):
            path = name.endswith(ENDING) and folder_paths.get_full_path(folder, name)
            if path and name not in seen:
                seen.add(name)
                yield name, Path(path), header(Path(path))


def _newest(one: tuple[str, Path]) -> tuple[int, str]:
    name, file = one
    try:
        return -file.stat().st_mtime_ns, name
    except OSError:  # just deleted
        return 0, name

"""Damages good values, tensors and files, as a bad disk or an attacker would, from a seed."""

from __future__ import annotations

import copy
import json
import math
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

DEEP = 3000  # nested brackets
HOSTILE = (
    *(None, True, False, 0, 1, -1, 3, 0.5, -2.5, 10**12, 10**30, 1e308, math.nan, math.inf),
    *("", " ", "x", "\0", "a\nb", "{}", "{0.__class__}", "{:99999999999}", "../../x", "\ud83d"),
    *("nan", "x" * 5000, [], {}, [1], ["x"], [None], [[]], {"x": 1}, {"": None}, [0.5] * 2000),
)
DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64),
    *(torch.bool, torch.uint8, torch.float8_e4m3fn),
)


def deep(rng: Random) -> Any:
    value: Any = []
    for _ in range(rng.choice((50, 900, DEEP))):
        value = [value] if rng.random() < 0.5 else {"x": value}
    return value


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path to every place in nested dicts, lists and tuples; () is the value itself."""
    if not isinstance(value, (dict, list, tuple)) or len(value) > 700:
        return [path]
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    return [path, *(place for name, one in inside for place in places(one, (*path, name)))]


def changed_value(rng: Random, value: Any) -> Any:
    """A copy with one place changed: replaced, dropped, renamed, doubled or swapped."""
    path = rng.choice(places(value))
    return _at(rng, value, path)


def _at(rng: Random, value: Any, path: tuple) -> Any:
    if not path:
        return _replaced(rng, value)
    name, rest = path[0], path[1:]
    parts = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    if rest or rng.random() < 0.6:
        parts[name] = _at(rng, parts[name], rest)
    else:
        how = rng.choice(("drop", "rename", "twice", "swap"))
        one = parts.pop(name)
        other = rng.choice(list(parts)) if parts else name
        if how == "rename":
            parts[rng.choice(("", "x", f"{name} ", 7))] = one
        elif how == "twice":
            parts |= {name: one, f"{name}2": copy.deepcopy(one)}
        elif how == "swap" and parts:
            parts |= {name: parts[other], other: one}
    if isinstance(value, dict):
        return parts
    return type(value)(parts.values())


def _replaced(rng: Random, value: Any) -> Any:
    if isinstance(value, torch.Tensor) and rng.random() < 0.9:
        return changed_tensor(rng, value)
    if rng.random() < 0.1:
        return deep(rng)
    if isinstance(value, (int, float)) and rng.random() < 0.3:
        return -value if rng.random() < 0.5 else value * 10 ** rng.randrange(1, 12)
    return copy.deepcopy(rng.choice(HOSTILE))


def changed_tensor(rng: Random, tensor: torch.Tensor) -> torch.Tensor:
    """A copy with another shape, precision or content."""
    flat = tensor.detach().clone()
    how = rng.randrange(8)
    if how == 0 and flat.is_floating_point() and flat.numel():
        some = rng.randrange(flat.numel())
        flat.view(-1)[some:] = rng.choice((math.nan, math.inf, -math.inf, 1e30, -1.0))
        return flat
    if how == 1:
        return flat.to(rng.choice(DTYPES))
    if how == 2:
        return flat.flatten()[: rng.choice((0, 1, 2))].clone()
    if how == 3:
        return flat.reshape(*flat.shape, 1) if rng.random() < 0.5 else flat.flatten()
    if how == 4:
        return torch.zeros([rng.choice((0, 1, 2, 5)) for _ in range(rng.randrange(5))])
    if how == 5 and flat.ndim > 1:
        return flat.transpose(0, 1).contiguous()
    if how == 6 and flat.ndim:
        return flat[: max(1, len(flat) // 2)].clone()
    return torch.zeros(())


def changed_bytes(rng: Random, data: bytes) -> bytes:
    """A copy that is cut short, has flipped bits, zeros or extra bytes, or is something else."""
    how, size = rng.randrange(7), len(data)
    if how == 0 or not size:
        return rng.choice((b"", b"\0", b"{}", b"hello\n", bytes(64), b"PK\x03\x04", b"\x80\x02."))
    at = rng.randrange(size)
    if how == 1:
        return data[:at]
    if how == 2:
        return data[:at] + bytes(min(64, size - at)) + data[at + 64 :]
    if how == 3:
        return data[:at] + rng.randbytes(rng.randrange(1, 40)) + data[at:]
    if how == 4:
        return data + rng.choice((b"\0", data))
    out = bytearray(data)
    # The beginning, which has the format's header, is hit as often as all the rest.
    end = rng.choice((16, min(size, 2000), size))
    for _ in range(rng.choice((1, 1, 3, 20))):
        out[rng.randrange(min(end, size))] ^= 1 << rng.randrange(8)
    return bytes(out)


def changed_text(rng: Random, text: str) -> bytes:
    """The text with dropped or doubled lines, odd letters, another encoding, or far too long."""
    lines = text.split("\n")
    at = rng.randrange(len(lines))
    odd = rng.choice(("\0", "\ufeff", "\u200b", ",", '"', "\r", "\t", "(", "{}", "x" * 3000, "-1"))
    how = rng.randrange(7)
    if how == 0:
        lines.pop(at)
    elif how == 1:
        lines.insert(at, lines[at])
    elif how in (2, 3):
        place = rng.randrange(len(lines[at]) + 1)
        lines[at] = lines[at][:place] + odd + lines[at][place:]
    elif how == 4:
        return text.encode(rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
    elif how == 5:
        lines = lines * rng.choice((50, 3000))
    else:
        return changed_bytes(rng, text.encode())
    return "\n".join(lines).encode()


# Files


def saved(tensors: dict, metadata: dict | None) -> bytes:
    """A safetensors file. The tensors are copied, since no two may share memory."""
    return save({str(name): t.clone().contiguous() for name, t in tensors.items()}, metadata)


def safetensors(rng: Random, tensors: dict, metadata: dict | None) -> bytes:
    """A safetensors file with changed tensors, or a good one with a changed header or bytes."""
    how = rng.randrange(10)
    if how < 6:
        changed = changed_value(rng, tensors)
        good = isinstance(changed, dict) and all(torch.is_tensor(t) for t in changed.values())
        return saved(changed if good else tensors, metadata)
    data = saved(tensors, metadata)
    if how < 8:
        return changed_bytes(rng, data)
    (length,) = struct.unpack("<Q", data[:8])
    header = changed_value(rng, json.loads(data[8 : 8 + length]))
    text = json.dumps(header).encode()
    stated = rng.choice((len(text), len(text), 2**63, 2**40, 0, length + 1))
    return struct.pack("<Q", stated) + text + data[8 + length :]


class Foreign:
    """An object that unpickles only by running code. No reader may do that."""

    def __reduce__(self):
        return print, ("A PICKLE RAN",)


def torch_file(rng: Random, file: Path, value: Any) -> None:
    """A file of torch.save with a changed value, another object, changed bytes, or compressed."""
    how = rng.randrange(12)
    if how == 0:
        value = rng.choice((Foreign(), [1], "text", None, torch.zeros(1).expand(2**40)))
    elif how < 9:
        value = changed_value(rng, value)
    torch.save(value, file, _use_new_zipfile_serialization=rng.random() > 0.1)
    if how == 9:
        file.write_bytes(changed_bytes(rng, file.read_bytes()))
    elif how > 9 and zipfile.is_zipfile(file):
        _pack(rng, file)


def _pack(rng: Random, file: Path) -> None:
    """Compress the parts, and add one that unpacks to nothing or to a gigabyte."""
    with zipfile.ZipFile(file) as old:
        parts = {part.filename: old.read(part) for part in old.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in parts.items():
            new.writestr(name, data)
        with new.open(f"{next(iter(parts)).partition('/')[0]}/data/99", "w") as part:
            for _ in range(rng.choice((0, 0, 0, 64))):
                part.write(bytes(2**24))

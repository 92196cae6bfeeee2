"""Erasure: the result of a method. Weight deltas and their provenance, in one safetensors file.

The file uses ComfyUI's key names (`<weight>.diff`, or `.lora_up.weight`, `.lora_down.weight` and
`.alpha`), so the stock Load LoRA node loads it too. Its metadata says, as JSON, how it was made and
what was measured, and may hold a few small pictures that the model drew before and after. It holds
nothing personal and no paths.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..files.writing import whole_file
from . import record as records
from .kind import Kind, current_kind
from .version import VERSION

FORMAT = "concept-unlearn/1"
NETWORK = "diffusion_model."  # the prefix of the denoiser's keys; all others are an encoder's
# Limits of a file, checked before any tensor is read: bytes of its header, number of tensors.
HEADER, TENSORS = 8 << 20, 50_000
READABLE = {
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"),
    *("I64", "I32", "I16", "I8", "U8", "BOOL"),
}
"""The number formats of safetensors that every supported torch reads."""


class ErasureError(ValueError):
    """A file or a combination that cannot be used; the message says why and what to do."""

    # ComfyUI shows an error's module before its name, and a node pack's module is a path.
    __module__ = "builtins"


@dataclass(frozen=True)
class Erasure:
    """Weight deltas that erase concepts. They are added to the weights of the base model."""

    deltas: Mapping[str, Mapping[str, torch.Tensor]]
    """By ComfyUI's name of the weight: {"diff"} of its shape, or {"lora_up", "lora_down"}."""
    record: Mapping = field(default_factory=dict)
    """Provenance as JSON: concepts, kind, method, settings, seed, images, base, measured, date."""
    unread: tuple[str, ...] = ()
    """The entries of a file's record that could not be read. `record` lacks them (record.py)."""
    pictures: Mapping[str, Mapping[str, list[str]]] = field(default_factory=dict)
    """By concept {"before", "after"}: small pictures that the model drew, from the same prompts and
    seeds, as JPEG in base64 (render/thumbnails.py)."""

    @property
    def concepts(self) -> list[str]:
        return list(self.record.get("concepts", ()))

    @property
    def kinds(self) -> set[Kind]:
        """The kinds of its concepts: object, style or character. A record without one counts as
        object."""
        return _kinds(self.record)

    def concepts_of(self, kind: str) -> list[str]:
        """Its concepts of one kind. A combined erasure may hold several kinds."""
        return list(dict.fromkeys(_concepts_of(self.record, kind)))

    def delta(self, key: str) -> torch.Tensor:
        """The change of one weight as a full tensor, float32."""
        return full(self.deltas[key])

    def norm(self) -> float:
        """The root of the sum of squares over all elements of all deltas."""
        return math.sqrt(max(0.0, sum(dot(delta, delta) for delta in self.deltas.values())))

    @property
    def changes_nothing(self) -> bool:
        """Whether every delta is zero."""
        return not any(
            all(tensor.any() for tensor in delta.values()) for delta in self.deltas.values()
        )

    @property
    def remark(self) -> str:
        """A sentence on the entries of the record that could not be read; "" if all could."""
        if not self.unread:
            return ""
        more = f" and {len(self.unread) - 3} more" if len(self.unread) > 3 else ""
        return (
            f"These entries of its record cannot be read and are ignored: "
            f"{'; '.join(self.unread[:3])}{more}."
        )

    def with_measured(self, **measured) -> Erasure:
        """The same deltas, with entries added to the record's "measured"."""
        merged = {**self.record.get("measured", {}), **measured}
        return replace(self, record={**self.record, "measured": merged})

    def with_probes(self, records: Iterable[Mapping]) -> Erasure:
        """The same deltas, with the results of probes (Probe.record). The latest result of each
        concept and level is kept."""
        probes = [*self.record.get("measured", {}).get("probe", ()), *records]
        latest = {(probe["concept"], probe["settings"]["level"]): probe for probe in probes}
        return self.with_measured(probe=list(latest.values()))

    def save(self, file: Path, dtype: torch.dtype = torch.float16, over: bool = True) -> None:
        """Write the file atomically: a crash leaves the old file or the new one.

        over: whether a file may be replaced. Raises ErasureError when a delta is not finite in
        `dtype`, and writing.ERRORS when the file cannot be written.
        """
        tensors = self.state_dict(dtype)
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ErasureError(
                    f"{key} holds values that do not fit into {dtype}; nothing was written."
                )
        metadata = {"format": FORMAT, "concept_unlearn": json.dumps(self.record, sort_keys=True)}
        if self.pictures:
            metadata["pictures"] = json.dumps(self.pictures, sort_keys=True)
        with whole_file(file, over) as new:
            save_file(tensors, new, metadata)

    def state_dict(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """The tensors under the names that they have in a file."""
        tensors = {}
        for key, delta in self.deltas.items():
            name = file_name(key)
            if "diff" in delta:
                suffix = ".diff_b" if key.endswith(".bias") else ".diff"
                tensors[name + suffix] = delta["diff"].to(dtype).contiguous()
            else:
                up, down = delta["lora_up"], delta["lora_down"]
                tensors[name + ".lora_up.weight"] = up.to(dtype).contiguous()
                tensors[name + ".lora_down.weight"] = down.to(dtype).contiguous()
                # The scale is alpha / rank; this makes it 1.
                tensors[name + ".alpha"] = torch.tensor(float(up.shape[1]))
        return tensors

    @staticmethod
    def load(file: Path) -> Erasure:
        """Read a file that `save` wrote.

        Raises ErasureError when it is missing, cut short, not a safetensors file, or not an
        erasure.
        """
        with opened(file) as content:
            metadata = content.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ErasureError(
                    f"{Path(file).name} is not an erasure of this pack (its format is "
                    f"{records.name_of(metadata.get('format', 'missing'))}, but {FORMAT} is "
                    "needed); choose another file. Load LoRAs with the Load LoRA node."
                )
            # Copies, since mapped tensors keep the file open, and Windows then lets nobody
            # replace or delete it.
            tensors = {key: content.get_tensor(key).clone() for key in content.keys()}  # noqa: SIM118 (not a dict)
        try:
            record, unread = records.checked(json.loads(metadata["concept_unlearn"]))
        except (KeyError, ValueError, RecursionError):  # JSONDecodeError is a ValueError
            raise ErasureError(
                f"{Path(file).name} has no readable record of how it was made; save or download it "
                "again."
            ) from None
        pictures, lost = records.checked_pictures(metadata.get("pictures", "{}"))
        return Erasure(parse(tensors), record, (*unread, *lost), pictures)


@contextmanager
def opened(file: Path) -> Iterator:
    """An open safetensors file. Its size is checked before any tensor is read.

    Raises ErasureError when it is missing, cut short, too large or not a safetensors file.
    """
    name = Path(file).name
    if Path(file).is_dir():
        raise ErasureError(f"{name or file} is a folder; choose an erasure file.")
    try:
        _check_header(Path(file))
        with safe_open(file, framework="pt") as content:
            keys = list(content.keys())
            if len(keys) > TENSORS:
                raise SafetensorError(f"{len(keys)} tensors")
            for key in keys:
                dtype = content.get_slice(key).get_dtype()
                if dtype not in READABLE:
                    raise SafetensorError(f"{records.name_of(key)} is of type {dtype}")
            yield content
    except FileNotFoundError:
        raise ErasureError(f"There is no file {name}; choose another one.") from None
    except (SafetensorError, OSError) as error:
        why = records.name_of(getattr(error, "strerror", None) or str(error))
        raise ErasureError(
            f"{name} is cut short or not a safetensors file ({why}); save or download it again."
        ) from None


def _check_header(file: Path) -> None:
    """Raises SafetensorError when it is not a regular file, or its header is too large."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise SafetensorError("not a file")
    with file.open("rb") as content:
        first_bytes = content.read(8)
    length = int.from_bytes(first_bytes, "little")
    if length > HEADER:
        if first_bytes.isascii():  # a web page, a Git LFS pointer, a PyTorch file
            raise SafetensorError(f"it begins with {first_bytes.decode()!r}")
        raise SafetensorError(f"its header has {length} bytes, but at most {HEADER} are read")


def _kinds(record: Mapping) -> set[Kind]:
    """The kinds in a record, or in the records that it was combined from."""
    if parts := record.get("parts"):
        found: set[Kind] = set()
        return found.union(*map(_kinds, parts))
    kind = current_kind(record.get("kind", "object"))
    if kind == "character":
        return {"character"}
    return {"style"} if kind == "style" else {"object"}


def _concepts_of(record: Mapping, kind: str) -> Iterator[str]:
    if parts := record.get("parts"):
        for part in parts:
            yield from _concepts_of(part, kind)
    elif kind in _kinds(record):
        yield from record.get("concepts", ())


def is_erasure(file: Path) -> bool:
    """Whether a file is an erasure and not, for example, a whole encoder. True for an unreadable
    file, too: `load` then says what is wrong with it."""
    try:
        with opened(file) as content:
            return (content.metadata() or {}).get("format") == FORMAT
    except ErasureError:
        return True


def full(delta: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A delta as one tensor, float32. A low-rank one is multiplied out."""
    if "diff" in delta:
        return delta["diff"].float()
    return delta["lora_up"].float() @ delta["lora_down"].float()


def file_name(key: str) -> str:
    """ComfyUI's LoRA name of a weight: encoder keys get a prefix, `.weight` and `.bias` go."""
    name = key.removesuffix(".weight").removesuffix(".bias")
    return name if name.startswith(NETWORK) else "text_encoders." + name


def dot(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The inner product of two deltas of one weight.

    A low-rank delta multiplied out may be far larger than its file. The full matrix is not formed
    where it would be larger than the product of the ranks.
    """
    if "lora_up" in one and "lora_up" in other:
        ranks = len(one["lora_down"]) * len(other["lora_down"])
        if ranks < math.prod(matrix_shape(one)):
            up = one["lora_up"].double().T @ other["lora_up"].double()
            return (up * (one["lora_down"].double() @ other["lora_down"].double().T)).sum().item()
    return (full(one).double().flatten() @ full(other).double().flatten()).item()


# The number formats of a delta. 8 bits are too few for one.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ENDINGS = {
    ".diff": (".weight", "diff"),
    ".diff_b": (".bias", "diff"),
    ".lora_up.weight": (".weight", "lora_up"),
    ".lora_down.weight": (".weight", "lora_down"),
    ".alpha": (".weight", "alpha"),
}
"""By the suffix of a tensor's name in a file: the suffix of the weight's name, and the part of the
delta."""


def parse(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Deltas by weight from a file's tensors, as the stock LoRA loader reads them.

    The scale of a low-rank delta, alpha / rank, is multiplied into lora_up. Raises ErasureError for
    a tensor with an unknown name, and for one that cannot be added to any weight.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        ending = next((e for e in ENDINGS if name.endswith(e)), None)
        if ending is None:
            raise ErasureError(
                f"The file has a tensor of an unknown kind, {records.name_of(name)}; choose an "
                "erasure file."
            )
        suffix, part = ENDINGS[ending]
        key = name.removesuffix(ending).removeprefix("text_encoders.") + suffix
        if part in found.setdefault(key, {}):
            raise _unusable(key, f"it has two tensors for {part}")
        found[key][part] = tensor
    # A lone alpha has nothing to scale.
    return {key: _delta(key, parts) for key, parts in found.items() if parts.keys() != {"alpha"}}


def _delta(key: str, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checked delta of one weight."""
    if "diff" in parts:  # the stock loader also prefers it
        return {"diff": _values(key, "diff", parts["diff"], 1)}
    if "lora_up" not in parts or "lora_down" not in parts:
        raise ErasureError(
            f"The file has only a part of the delta of {records.name_of(key)}; save or download it "
            "again."
        )
    up, down = (_values(key, name, parts[name], 2) for name in ("lora_up", "lora_down"))
    shapes = f"lora_up is {tuple(up.shape)} and lora_down {tuple(down.shape)}"
    up, down = up.flatten(1), down.flatten(1)
    rank = len(down)
    if up.shape[1] != rank:
        raise _unusable(key, f"{shapes}, whose ranks differ")
    alpha = parts.get("alpha", torch.tensor(float(rank)))
    if alpha.numel() != 1 or not math.isfinite(alpha.item()):
        raise _unusable(key, "its alpha is not one finite number")
    if alpha.item() != rank:
        up = up.float() * (alpha.item() / rank)
    if not largest({"lora_up": up, "lora_down": down}) < torch.finfo(torch.float32).max:
        raise _unusable(key, "its values are too large")
    return {"lora_up": up, "lora_down": down}


def _values(key: str, part: str, tensor: torch.Tensor, min_dims: int) -> torch.Tensor:
    """The tensor, checked: its number format, at least `min_dims` dimensions, not empty, finite."""
    if tensor.dtype not in DTYPES:
        raise _unusable(key, f"its {part} is of type {tensor.dtype}")
    if tensor.ndim < min_dims or tensor.numel() == 0:
        raise _unusable(key, f"its {part} has the shape {tuple(tensor.shape)}")
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    if not torch.isfinite(tensor).all():
        raise _unusable(key, f"its {part} holds NaN or infinite values")
    return tensor


def largest(delta: Mapping[str, torch.Tensor]) -> float:
    """An upper bound of the absolute value of the delta's elements."""
    sizes = [tensor.abs().max().item() for tensor in delta.values()]
    return math.prod(sizes) * (len(delta["lora_down"]) if "lora_down" in delta else 1)


def check_range(delta: Mapping[str, torch.Tensor], weight: torch.Tensor, what: str) -> None:
    """Raises ErasureError where the delta could overflow the weight's precision.

    what: the subject of the message, such as a file's name.
    """
    precision = weight.dtype if weight.dtype in DTYPES else torch.float16
    if not largest(delta) <= torch.finfo(precision).max:
        raise ErasureError(f"{what} is too large for weights in {precision}; choose another file.")


def _unusable(key: str, why: str) -> ErasureError:
    return ErasureError(
        f"The file's delta of {records.name_of(key)} cannot be used: {why}; save or download it "
        "again."
    )


def matrix_shape(delta: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """(rows, columns) of a delta as a matrix: the first dimension by all the others."""
    if "diff" in delta:
        shape = delta["diff"].shape or (1,)
        return shape[0], math.prod(shape[1:])
    return delta["lora_up"].shape[0], delta["lora_down"].shape[1]


def check_strength(strength: float) -> None:
    """Raises ErasureError for NaN or infinity, which would spread to every weight."""
    if not math.isfinite(strength):
        raise ErasureError(f"The strength is {strength}; give a finite number, for example 1.")


def combine(erasures: Iterable[Erasure], strengths: Iterable[float] | None = None) -> Erasure:
    """One erasure whose deltas are the sum of the others', each times its strength (default 1).

    Raises ErasureError when there is none, when two were trained on different base weights, when
    shapes differ, or when a sum is too large for a weight.
    """
    erasures = list(erasures)
    strengths = list(strengths) if strengths is not None else [1.0] * len(erasures)
    if not erasures:
        raise ErasureError("There is nothing to combine: connect at least one erasure.")
    for strength in strengths:
        check_strength(strength)
    if len(erasures) == 1 and strengths == [1.0]:
        return erasures[0]
    bases: dict[str, str] = {}
    for erasure in erasures:
        for key, value in erasure.record.get("base", {}).items():
            if bases.setdefault(key, value) != value:
                raise ErasureError(
                    f"{name_of(erasure)} was trained on another base model than the others: "
                    f"{key} differs. Combine only erasures of one model."
                )
    shapes: dict[str, tuple[int, ...]] = {}
    for erasure in erasures:
        for key, delta in erasure.deltas.items():
            shape = matrix_shape(delta)
            if shapes.setdefault(key, shape) != shape:
                raise ErasureError(
                    f"{name_of(erasure)} is for a model of another size than the others: {key} has "
                    f"the shape {shape}, but {shapes[key]} in the others. Combine only erasures of "
                    "one model."
                )
    deltas: dict[str, dict[str, torch.Tensor]] = {}
    for key in dict.fromkeys(key for erasure in erasures for key in erasure.deltas):
        parts = [(e.deltas[key], s) for e, s in zip(erasures, strengths) if key in e.deltas]
        if all("lora_up" in delta for delta, _ in parts):
            # Low-rank deltas stay low-rank: their ranks add up.
            deltas[key] = {
                "lora_up": torch.cat([delta["lora_up"].float() * s for delta, s in parts], 1),
                "lora_down": torch.cat([delta["lora_down"].float() for delta, _ in parts], 0),
            }
        else:
            shape = next(delta["diff"].shape for delta, _ in parts if "diff" in delta)
            deltas[key] = {"diff": sum(full(delta).view(shape) * s for delta, s in parts)}
        if not largest(deltas[key]) < torch.finfo(torch.float32).max:
            raise ErasureError(
                f"At these strengths the delta of {key} is too large for a weight; choose smaller "
                "strengths."
            )
    record = {
        "method": "combined",
        "concepts": list(dict.fromkeys(c for e in erasures for c in e.concepts)),
        "base": bases,
        "parts": [dict(e.record) for e in erasures],
        "strengths": strengths,
        "version": VERSION,
        "date": date.today().isoformat(),
    }
    pictures: dict = {}
    for erasure in reversed(erasures):  # of one concept's the first erasure's count
        pictures.update(erasure.pictures)
    return Erasure(deltas, record, pictures=pictures)


def name_of(erasure: Erasure) -> str:
    """The subject of a sentence about it: `The erasure of "fox"`."""
    return "The erasure of " + (
        records.name_of(", ".join(f'"{c}"' for c in erasure.concepts)) or "an unnamed concept"
    )


def check_changes(erasure: Erasure, what: str) -> None:
    """Raises ErasureError for an erasure that changes no weight, so would erase nothing.

    what: the subject of the message.
    """
    if erasure.changes_nothing:
        raise ErasureError(
            f"{what} changes no weight, so it would erase nothing; choose an erasure that does, at "
            "a strength other than 0."
        )


def fingerprint(weight: torch.Tensor) -> str:
    """A hash of a weight's values. It takes them as float16, so it is the same whatever precision
    the weight is loaded in."""
    # One machine flushes subnormals to zero and another does not.
    half = weight.detach().to("cpu", torch.float16)
    half = torch.where(half.abs() < 2**-14, torch.zeros_like(half), half)
    return hashlib.sha256(half.contiguous().view(torch.int16).numpy().tobytes()).hexdigest()[:16]


def images_hash(images: torch.Tensor) -> str:
    """A hash of images in 0..1, at eight bits per channel."""
    pixels = (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()[:16]

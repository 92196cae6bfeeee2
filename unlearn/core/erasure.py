"""Erasure: the artefact. Weight deltas and where they came from, in one safetensors file.

The file uses ComfyUI's own key names (`<weight>.diff`, or `.lora_up.weight`, `.lora_down.weight`
and `.alpha`), so its stock Load LoRA node loads it too. The metadata holds how it was made and what
was measured, as JSON; nothing personal and no paths.
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
from .version import VERSION

FORMAT = "concept-unlearn/1"
NETWORK = "diffusion_model."  # keys of the denoising network begin so; all others are an encoder's
# What a file may ask for before anything of it is unpacked.
HEADER, TENSORS = 8 << 20, 50_000
READABLE = {
    *("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"),
    *("I64", "I32", "I16", "I8", "U8", "BOOL"),
}
"""Number formats of safetensors that every torch reads."""


class ErasureError(ValueError):
    """A file or a combination that cannot be used; the message says why and what to do."""

    # ComfyUI shows an error's module beside its name, and that of a node pack is a path.
    __module__ = "builtins"


@dataclass(frozen=True)
class Erasure:
    """A set of weight deltas. Adding them to the base model suppresses the concepts."""

    deltas: Mapping[str, Mapping[str, torch.Tensor]]
    """By the host's name of the weight: {"diff"} of its shape, or {"lora_up", "lora_down"}."""
    record: Mapping = field(default_factory=dict)
    """Provenance, JSON-like: concepts, kind, method, settings, seed, images, base, measured,
    date."""
    unread: tuple[str, ...] = ()
    """What a file's record has that cannot be read, which `record` leaves out (record.py)."""

    @property
    def concepts(self) -> list[str]:
        return list(self.record.get("concepts", ()))

    @property
    def kinds(self) -> set[str]:
        """What its concepts are: object, style or character. Where it does not say, objects."""
        return _kinds(self.record)

    def concepts_of(self, kind: str) -> list[str]:
        """Its concepts of one kind; a combined erasure may hold several kinds."""
        return list(dict.fromkeys(_concepts_of(self.record, kind)))

    def delta(self, key: str) -> torch.Tensor:
        """The change of one weight as a full tensor, float32."""
        return full(self.deltas[key])

    def norm(self) -> float:
        """Root of the sum of squares over all deltas."""
        return math.sqrt(max(0.0, sum(dot(delta, delta) for delta in self.deltas.values())))

    @property
    def changes_nothing(self) -> bool:
        """Whether there is no change in it but zeros."""
        return not any(
            all(tensor.any() for tensor in delta.values()) for delta in self.deltas.values()
        )

    @property
    def remark(self) -> str:
        """A sentence on what could not be read of the record, if there is any."""
        if not self.unread:
            return ""
        more = f" and {len(self.unread) - 3} more" if len(self.unread) > 3 else ""
        return (
            f"Its record has what cannot be read and counts as absent: {'; '.join(self.unread[:3])}"
            f"{more}."
        )

    def with_measured(self, **measured) -> Erasure:
        """The same deltas, with figures added to what the record says was measured."""
        merged = {**self.record.get("measured", {}), **measured}
        return replace(self, record={**self.record, "measured": merged})

    def with_probes(self, records: Iterable[Mapping]) -> Erasure:
        """The same deltas, with what probes found (Probe.record); of each concept and level the
        latest is kept."""
        every = [*self.record.get("measured", {}).get("probe", ()), *records]
        latest = {(one["concept"], one["settings"]["level"]): one for one in every}
        return self.with_measured(probe=list(latest.values()))

    def save(self, file: Path, dtype: torch.dtype = torch.float16) -> None:
        """Write the file whole or not at all: a crash leaves the old file or the new one.

        Raises ErasureError when a delta is not finite in `dtype`, and what writing raises
        (writing.ERRORS).
        """
        tensors = self.state_dict(dtype)
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise ErasureError(f"{key} holds values that {dtype} cannot; nothing was written.")
        metadata = {"format": FORMAT, "concept_unlearn": json.dumps(self.record, sort_keys=True)}
        with whole_file(file) as new:
            save_file(tensors, new, metadata)

    def state_dict(self, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """The tensors as the file holds them."""
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
                # alpha divided by the rank is the scale; this makes it 1.
                tensors[name + ".alpha"] = torch.tensor(float(up.shape[1]))
        return tensors

    @staticmethod
    def load(file: Path) -> Erasure:
        """Read a file that `save` wrote.

        Raises ErasureError, one sentence, when it is missing, cut short, no safetensors file, or
        not an erasure.
        """
        with opened(file) as content:
            metadata = content.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ErasureError(
                    f"{Path(file).name} is not an erasure of this pack (its format is "
                    f"{records.name_of(metadata.get('format', 'not named'))}, wanted is {FORMAT}); "
                    "choose another file. LoRAs are for the Load LoRA node."
                )
            # Copies: what is read in place keeps the file open, and Windows then lets nobody
            # replace or delete it.
            tensors = {key: content.get_tensor(key).clone() for key in content.keys()}  # noqa: SIM118 (no mapping)
        try:
            record, unread = records.checked(json.loads(metadata["concept_unlearn"]))
        except (KeyError, ValueError, RecursionError):  # of which a JSONDecodeError is one
            raise ErasureError(
                f"{Path(file).name} has no readable record of how it was made; save or download it "
                "again."
            ) from None
        return Erasure(parse(tensors), record, tuple(unread))


@contextmanager
def opened(file: Path) -> Iterator:
    """A safetensors file's content, which is bounded before anything is unpacked.

    Raises ErasureError, one sentence, when it is missing, cut short or no such file.
    """
    name = Path(file).name
    if Path(file).is_dir():
        raise ErasureError(f"{name or file} is a folder; name an erasure's file.")
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
        raise ErasureError(f"There is no file {name}; choose another.") from None
    except (SafetensorError, OSError) as error:
        why = records.name_of(getattr(error, "strerror", None) or str(error))
        raise ErasureError(
            f"{name} is cut short or not a safetensors file ({why}); save or download it again."
        ) from None


def _check_header(file: Path) -> None:
    """Raises SafetensorError where it is no file, or one with a header larger than any needs."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise SafetensorError("not a file")
    with file.open("rb") as content:
        begin = content.read(8)
    length = int.from_bytes(begin, "little")
    if length > HEADER:
        if begin.isascii():  # a web page, a pointer of Git LFS, a file of PyTorch
            raise SafetensorError(f"it begins with {begin.decode()!r}")
        raise SafetensorError(f"a header of {length} bytes, at most {HEADER} are read")


def _kinds(record: Mapping) -> set[str]:
    """Of a record, or of those that it was combined from."""
    if parts := record.get("parts"):
        return set().union(*map(_kinds, parts))
    kind = record.get("kind", "object")
    kind = "character" if kind == "instance" else kind
    return {kind if kind in ("style", "character") else "object"}


def _concepts_of(record: Mapping, kind: str) -> Iterator[str]:
    if parts := record.get("parts"):
        for part in parts:
            yield from _concepts_of(part, kind)
    elif kind in _kinds(record):
        yield from record.get("concepts", ())


def is_erasure(file: Path) -> bool:
    """Whether a readable file says it is one; another safetensors file may be a whole encoder."""
    try:
        with opened(file) as content:
            return (content.metadata() or {}).get("format") == FORMAT
    except ErasureError:
        return True  # let `load` say what is wrong with it


def full(delta: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A delta as one tensor, float32: a low-rank one comes out as the matrix product."""
    if "diff" in delta:
        return delta["diff"].float()
    return delta["lora_up"].float() @ delta["lora_down"].float()


def file_name(key: str) -> str:
    """The host's LoRA name of a weight: encoders are prefixed, `.weight` and `.bias` go."""
    name = key.removesuffix(".weight").removesuffix(".bias")
    return name if name.startswith(NETWORK) else "text_encoders." + name


def dot(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The sum of the products of two deltas' elements, of one weight.

    The product of low-rank factors may be far larger than the file that they come from, so where it
    is it is not formed.
    """
    if "lora_up" in one and "lora_up" in other:
        ranks = len(one["lora_down"]) * len(other["lora_down"])
        if ranks < math.prod(matrix_shape(one)):
            up = one["lora_up"].double().T @ other["lora_up"].double()
            return (up * (one["lora_down"].double() @ other["lora_down"].double().T)).sum().item()
    return (full(one).double().flatten() @ full(other).double().flatten()).item()


# Of changes: 8 bits are too few, and whole numbers are no changes.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ENDINGS = {
    ".diff": (".weight", "diff"),
    ".diff_b": (".bias", "diff"),
    ".lora_up.weight": (".weight", "lora_up"),
    ".lora_down.weight": (".weight", "lora_down"),
    ".alpha": (".weight", "alpha"),
}
"""By the end of a tensor's name in a file: the end of the weight's name, and which part it is."""


def parse(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Deltas by weight from a file's tensors, as the stock LoRA loader reads them.

    Of a low-rank one alpha / rank is the scale, which is put into lora_up. Raises ErasureError, one
    sentence, for a tensor of no known kind, and for one that cannot be added to any weight.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        ending = next((e for e in ENDINGS if name.endswith(e)), None)
        if ending is None:
            raise ErasureError(f"The file has a tensor of no known kind, {records.name_of(name)}.")
        suffix, part = ENDINGS[ending]
        key = name.removesuffix(ending).removeprefix("text_encoders.") + suffix
        if part in found.setdefault(key, {}):
            raise _unusable(key, f"it has two of {part}")
        found[key][part] = tensor
    # An alpha alone scales nothing.
    return {key: _delta(key, parts) for key, parts in found.items() if parts.keys() != {"alpha"}}


def _delta(key: str, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One weight's change, checked."""
    if "diff" in parts:  # the stock loader takes it first, too
        return {"diff": _values(key, "diff", parts["diff"], 1)}
    if "lora_up" not in parts or "lora_down" not in parts:
        raise ErasureError(
            f"The file has only a part of the change of {records.name_of(key)}; save or download "
            "it again."
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


def _values(key: str, part: str, tensor: torch.Tensor, least: int) -> torch.Tensor:
    """A file's tensor of at least so many dimensions, none of them empty, and of finite numbers."""
    if tensor.dtype not in DTYPES:
        raise _unusable(key, f"its {part} is of {tensor.dtype}")
    if tensor.ndim < least or tensor.numel() == 0:
        raise _unusable(key, f"its {part} has the shape {tuple(tensor.shape)}")
    tensor = tensor.float() if tensor.dtype == torch.float64 else tensor
    if not torch.isfinite(tensor).all():
        raise _unusable(key, f"its {part} holds NaN or infinite values")
    return tensor


def largest(delta: Mapping[str, torch.Tensor]) -> float:
    """No element of the delta is larger."""
    sizes = [tensor.abs().max().item() for tensor in delta.values()]
    return math.prod(sizes) * (len(delta["lora_down"]) if "lora_down" in delta else 1)


def check_range(delta: Mapping[str, torch.Tensor], weight: torch.Tensor, what: str) -> None:
    """Raises ErasureError where a weight of this precision would overflow by the change."""
    precision = weight.dtype if weight.dtype in DTYPES else torch.float16
    if not largest(delta) <= torch.finfo(precision).max:
        raise ErasureError(f"{what} is too large for weights in {precision}; choose another file.")


def _unusable(key: str, why: str) -> ErasureError:
    return ErasureError(
        f"The file's change of {records.name_of(key)} cannot be used: {why}; save or download it "
        "again."
    )


def matrix_shape(delta: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """(rows, columns) of a delta; a weight of any shape counts as a matrix, a bias as a column."""
    if "diff" in delta:
        shape = delta["diff"].shape or (1,)
        return shape[0], math.prod(shape[1:])
    return delta["lora_up"].shape[0], delta["lora_down"].shape[1]


def check_strength(strength: float) -> None:
    """Raises ErasureError for one that is no number: every weight would be none, too."""
    if not math.isfinite(strength):
        raise ErasureError(f"The strength is {strength}; give a number, for example 1.")


def combine(erasures: Iterable[Erasure], strengths: Iterable[float] | None = None) -> Erasure:
    """One erasure that does what all of them do, its deltas the weighted sum of theirs.

    Raises ErasureError when there are none, or when two were trained on different base weights.
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
                    f"{key} differs. Combine erasures of one model only."
                )
    shapes: dict[str, tuple[int, ...]] = {}
    for erasure in erasures:
        for key, delta in erasure.deltas.items():
            shape = matrix_shape(delta)
            if shapes.setdefault(key, shape) != shape:
                raise ErasureError(
                    f"{name_of(erasure)} is for an encoder of another size than the others: {key} "
                    f"is {shape} in it and {shapes[key]} in theirs. Combine erasures of one model."
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
                f"At these strengths the change of {key} is too large for a weight; choose smaller "
                "ones."
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
    return Erasure(deltas, record)


def name_of(erasure: Erasure) -> str:
    """How a sentence refers to it."""
    return "The erasure of " + (
        records.name_of(", ".join(f'"{c}"' for c in erasure.concepts)) or "an unnamed concept"
    )


def check_changes(erasure: Erasure, what: str) -> None:
    """Raises ErasureError where it changes no weight: nothing would be erased by it."""
    if erasure.changes_nothing:
        raise ErasureError(
            f"{what} changes no weight, so nothing would be erased: choose an erasure that does, "
            "at a strength other than 0."
        )


def fingerprint(weight: torch.Tensor) -> str:
    """A hash of a weight's values as float16, so that loading it in another dtype changes
    nothing."""
    # Subnormals may be flushed on one machine and not on another.
    half = weight.detach().to("cpu", torch.float16)
    half = torch.where(half.abs() < 2**-14, torch.zeros_like(half), half)
    return hashlib.sha256(half.contiguous().view(torch.int16).numpy().tobytes()).hexdigest()[:16]


def images_hash(images: torch.Tensor) -> str:
    """A hash of images in 0..1, at eight bits a channel."""
    pixels = (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()[:16]

"""Erasure: the artefact. Weight deltas and where they came from, in one safetensors file.

The file uses ComfyUI's own key names (`<weight>.diff`, or `.lora_up.weight`, `.lora_down.weight`
and `.alpha`), so its stock Load LoRA node loads it too. The metadata holds how it was made and what
was measured, as JSON; nothing personal and no paths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .writing import whole_file

FORMAT = "concept-unlearn/1"
VERSION = "0.1.0"
NETWORK = "diffusion_model."  # keys of the denoising network begin so; all others are an encoder's


class ErasureError(ValueError):
    """A file or a combination that cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Erasure:
    """A set of weight deltas. Adding them to the base model suppresses the concepts."""

    deltas: Mapping[str, Mapping[str, torch.Tensor]]
    """By the host's name of the weight: {"diff"} of its shape, or {"lora_up", "lora_down"}."""
    record: Mapping = field(default_factory=dict)
    """Provenance, JSON-like: concepts, kind, method, settings, seed, images, base, measured,
    date."""

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
        return sum(self.delta(key).square().sum().item() for key in self.deltas) ** 0.5

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
        try:
            with safe_open(file, framework="pt") as content:
                metadata = content.metadata() or {}
                # Copies: what is read in place keeps the file open, and Windows then lets nobody
                # replace or delete it.
                tensors = {key: content.get_tensor(key).clone() for key in content.keys()}  # noqa: SIM118 (no mapping)
        except FileNotFoundError:
            raise ErasureError(f"There is no file {Path(file).name}; choose another.") from None
        except (SafetensorError, OSError) as error:
            raise ErasureError(
                f"{Path(file).name} is cut short or not a safetensors file ({error}); "
                "save or download it again."
            ) from None
        if metadata.get("format") != FORMAT:
            raise ErasureError(
                f"{Path(file).name} is not an erasure of this pack (its format is "
                f"{metadata.get('format', 'not named')}, wanted is {FORMAT})."
            )
        try:
            record = json.loads(metadata["concept_unlearn"])
            _check_record(record)
        except (KeyError, ValueError):  # of which a JSONDecodeError is one
            raise ErasureError(
                f"{Path(file).name} has no readable record of how it was made; save or download it "
                "again."
            ) from None
        return Erasure(parse(tensors), record)


RECORD = {
    "concepts": list,
    "loss": list,
    "parts": list,
    "settings": dict,
    "measured": dict,
    "base": dict,
}
"""What programs look into in a record, where it has it; the rest is for people."""


def _check_record(record) -> None:
    """Raises ValueError for one of another make: files come from anybody."""
    if not isinstance(record, dict):
        raise ValueError
    if not all(isinstance(record.get(name, kind()), kind) for name, kind in RECORD.items()):
        raise ValueError
    if not all(isinstance(concept, str) for concept in record.get("concepts", ())):
        raise ValueError
    if not all(isinstance(value, (int, float)) for value in record.get("loss", ())):
        raise ValueError
    for part in record.get("parts", ()):
        _check_record(part)


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
        with safe_open(file, framework="pt") as content:
            return (content.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
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


def parse(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Deltas by weight from a file's tensors. Raises ErasureError for a key of no known kind."""
    endings = {
        ".diff": (".weight", "diff"),
        ".diff_b": (".bias", "diff"),
        ".lora_up.weight": (".weight", "lora_up"),
        ".lora_down.weight": (".weight", "lora_down"),
        ".alpha": (".weight", None),
    }
    deltas: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        ending = next((e for e in endings if name.endswith(e)), None)
        if ending is None:
            raise ErasureError(f"The file has a tensor of no known kind, {name}.")
        suffix, part = endings[ending]
        key = name.removesuffix(ending).removeprefix("text_encoders.") + suffix
        if part:
            deltas.setdefault(key, {})[part] = tensor
    for key, delta in deltas.items():
        if "diff" not in delta and len(delta) != 2:
            raise ErasureError(
                f"The file has only a part of the change of {key}; save or download it again."
            )
    return deltas


def matrix_shape(delta: Mapping[str, torch.Tensor]) -> tuple[int, ...]:
    """(rows, columns) of a delta; a weight of any shape counts as a matrix, a bias as a column."""
    if "diff" in delta:
        return tuple(delta["diff"].reshape(len(delta["diff"]), -1).shape)
    return delta["lora_up"].shape[0], delta["lora_down"].shape[1]


def combine(erasures: Iterable[Erasure], strengths: Iterable[float] | None = None) -> Erasure:
    """One erasure that does what all of them do, its deltas the weighted sum of theirs.

    Raises ErasureError when there are none, or when two were trained on different base weights.
    """
    erasures = list(erasures)
    strengths = list(strengths) if strengths is not None else [1.0] * len(erasures)
    if not erasures:
        raise ErasureError("There is nothing to combine: connect at least one erasure.")
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
        ", ".join(f'"{c}"' for c in erasure.concepts) or "an unnamed concept"
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

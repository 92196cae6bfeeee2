"""The files in which a training node keeps its erasures, and how it finds them again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path

import folder_paths
import torch

from ..unlearn.core.erasure import Erasure, ErasureError, images_hash
from ..unlearn.core.header import header
from ..unlearn.core.version import VERSION
from ..unlearn.files import writing
from ..unlearn.methods.parts.method import Method
from .backend.identity import signature

ENDING = ".safetensors"
LONGEST = 120  # most bytes of the concepts in a file's name
# Most bytes of a filename_prefix and of each name in it. File systems allow 255 for a name. A
# number and an ending are added, and a longer temporary name while the file is written.
LONGEST_PATH, LONGEST_PART = 500, 200


def training_key(method: str, concepts, settings, images, size, model, clip, vae) -> str:
    """A hash of everything that decides the result of a training, the pack's version included.

    model: None where the method needs the text encoder alone.

    Functions that other nodes put into the model's attention are the exception: they cannot be
    identified.
    """
    inputs = {
        "version": VERSION,
        "method": method,
        "concepts": concepts,
        "settings": asdict(settings),
        "size": size,
        "images": None if images is None else images_hash(images),
        "model": None if model is None else signature(model),
        "clip": signature(clip.patcher),
        "skip": clip.layer_idx,
        # Pictures that the model draws itself stay latents, and the VAE does not matter.
        "vae": None if images is None or vae is None else signature(vae.patcher),
    }
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


def output_file(path: str) -> Path:
    """A path in the output folder. Raises ValueError if it leaves that folder, or if a file system
    would refuse it."""
    longest = max((len(part.encode()) for part in Path(path).parts), default=0)
    if longest > LONGEST_PART or len(path.encode()) > LONGEST_PATH:
        raise ValueError(
            f"filename_prefix has {len(path.encode()):,} bytes and the longest name in it "
            f"{longest:,}: use at most {LONGEST_PATH} and {LONGEST_PART}."
        )
    if any(letter < " " for letter in path):
        raise ValueError(
            f"filename_prefix {path!r} holds a line break or another control character: type it "
            "anew."
        )
    output = Path(folder_paths.get_output_directory()).resolve()
    file = (output / path).resolve()
    if not file.is_relative_to(output):
        raise ValueError(
            f"filename_prefix {path!r} leaves ComfyUI's output folder; use a path inside it, for "
            "example: loras/erased"
        )
    return file


def check_name(prefix: str) -> None:
    """Raises ValueError unless the prefix ends in a file name, in the output folder."""
    file = output_file(prefix)
    hidden = file.name.startswith(".") or not file.name.strip()
    if hidden or file == Path(folder_paths.get_output_directory()).resolve():
        raise ValueError(
            f"filename_prefix {prefix!r} names no file, or a hidden one: end it in a name, for "
            "example: loras/erased"
        )


def dated(path: str) -> str:
    """The path with today's date for %year% and the like, as the host's Save nodes do it."""

    def part(name: str) -> str:
        # The folder does not matter, but it must exist.
        *_, replaced = folder_paths.get_save_image_path(name, str(Path(__file__).parent))
        return replaced

    return "/".join(part(name) if "%" in name else name for name in path.split("/"))


def erasure_file(prefix: str, concepts: list[str], method: str, key: str) -> tuple[Path, bool]:
    """(the file for a trained erasure, whether it holds what was trained with this key).

    A prefix that ends in .safetensors names the file; any other is its folder, and the file is
    named after the concepts and the method. A name that is taken gets a number.
    """
    folder, name = _place(prefix, concepts, method)
    numbered = re.compile(rf"{re.escape(name)}(\.[0-9]+)?\{ENDING}")
    older = f"{_words(concepts)}_{key[:8]}{ENDING}"  # what the file was called before
    for file in sorted(folder.glob(f"*{ENDING}")) if folder.is_dir() else ():
        named = file.name == older or numbered.fullmatch(file.name)
        if named and header(file).key == key:
            return file, True
    return free_file(folder, name), False


def free_file(folder: Path, name: str) -> Path:
    """The first of NAME.safetensors, NAME.2.safetensors and so on that is no file yet."""
    names = (f"{name}.{number}" if number > 1 else name for number in count(1))
    files = (folder / f"{one}{ENDING}" for one in names)
    return next(file for file in files if not file.is_file())


def state_file(prefix: str, concepts: list[str], key: str) -> Path:
    """The file for the state of a run, beside its erasure. Other inputs have another."""
    folder, _ = _place(prefix, concepts, "")
    return folder / f"{_words(concepts)}_{key[:8]}.resume"


def _place(prefix: str, concepts: list[str], method: str) -> tuple[Path, str]:
    """A folder, and a file's name without number and ending."""
    path = output_file(dated(prefix))
    if path.suffix == ENDING:
        return path.parent, path.stem
    return path, f"{_words(concepts)}.{method}"


def _words(concepts: list[str]) -> str:
    """The concepts, as a part of a file's name."""
    words = "-".join("".join(c if c.isalnum() else "_" for c in name) for name in concepts)[:60]
    # File systems count bytes, and a letter may have four.
    return words.encode()[:LONGEST].decode(errors="ignore")


def check_writable(file: Path) -> None:
    """Raises ValueError if the file's folder cannot be written to: the run would be lost."""
    try:
        writing.check_writable(file)
    except OSError as error:
        raise ValueError(
            f"The erasure could not be written to {shown(file.parent)} "
            f"({writing.reason(error)}); choose another filename_prefix."
        ) from error


def check_space(file: Path, needed: int) -> None:
    """Raises ValueError if the file's disk has fewer than `needed` bytes free."""
    free = writing.free_bytes(file)
    if free < needed:
        raise ValueError(
            f"The erasure will take {needed / 1e6:.0f} MB in {shown(file.parent)} and "
            f"{free / 1e6:.0f} MB are free there; make room, or use a rank of 4 to 16."
        )


def save(erasure: Erasure, file: Path, over: bool = True) -> str:
    """Write an erasure. Returns "", or a sentence that says why it could not be written.

    It does not raise: if the file fails, the trained erasure must not be lost with it. The one
    exception is FileExistsError, where a file is there and `over` is False.
    """
    try:
        try:
            erasure.save(file, over=over)
        except ErasureError:  # out of float16's range
            erasure.save(file, torch.float32, over)
    except (ErasureError, *writing.ERRORS) as error:
        if isinstance(error, FileExistsError) and file.is_file():
            raise
        return f"{file.name} cannot be written to {shown(file.parent)} ({writing.reason(error)})"
    return ""


def save_found(erasure: Erasure, find: Callable[[], tuple[Path, bool]]) -> tuple[Path, str]:
    """`save` in the file that `find` gives: (the file, what `save` returns).

    find: as `erasure_file`. Another process may take the name meanwhile; then it is asked again.
    """
    while True:
        file, is_own = find()
        try:
            return file, save(erasure, file, over=is_own)
        except FileExistsError:
            continue


def shown(folder: Path) -> str:
    """A folder for a message: relative to ComfyUI's output folder."""
    output = Path(folder_paths.get_output_directory()).resolve()
    return f"output/{folder.relative_to(output).as_posix()}".removesuffix("/.")


# What a training node needs from the record of an erasure that it finds, for its summary.
SAID = ("concepts", "kind", "steps", "loss", "settings")


def trained_before(file: Path, key: str, method: Method) -> Erasure | None:
    """The erasure in the file, if it was trained with the same inputs and is complete."""
    if not file.is_file():
        return None
    try:
        erasure = Erasure.load(file)
    except ErasureError:
        return None  # foreign or damaged: it is trained again, and the file is replaced
    record = erasure.record
    needed = (*SAID, *(("moved",) if method.part == "denoiser" else ()), *method.recorded)
    whole = all(name in record for name in needed)
    if "mode" in method.described:
        whole = whole and "mode" in record["settings"]
    return erasure if whole and not erasure.unread and record.get("key") == key else None

"""Reads a plan: the models, concepts, methods, settings and seeds of a sweep (docs/sweeps.md)."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NoReturn

from ...diffusers_backend.load import check_model
from ...methods.parts.method import Method
from ...methods.parts.settings import Setting
from ...methods.registry import METHODS
from .. import erase
from ..output import Failure
from ..texts import read_text
from .cell import Cell

KEYS = ("models", "concepts", "methods", "seeds", "options")
OPTIONS = ("size", "config", "device", "half", "save-memory", "clip-skip", "precision")
"""Options of `erase` that are no settings of a method. They hold for the whole plan."""
SWITCHES = ("half", "save-memory")
CHANGING = ("size", "clip_skip", "half", "precision")
"""Those of them that change the erasure."""
OWN = {"kind": "the tables of concepts", "seed": "seeds"}
"""Settings of the methods that a plan gives elsewhere, and where."""
SAMPLE = 1 << 20  # bytes at the beginning and at the end of a large file


def read_plan(file: Path, output: Path) -> list[Cell]:
    """The cells of a plan, each once, in the plan's order. Nothing is run and no model is loaded.

    output: the folder of the sweep. Raises Failure with one sentence for the first thing in the
    plan that cannot be used.
    """
    plan = _Plan(file)
    reader = _Reader(add_help=False, allow_abbrev=False)
    erase.add(reader)
    config = signature(plan.config) if plan.config else ""
    cells: dict[str, Cell] = {}
    for name, path in plan.models.items():
        model = signature(path)
        for method, kind, concept, settings, seed in plan.asked():
            words = _words(method, {**settings, "kind": kind, "seed": seed})
            words += [*plan.options, "--force", "--output=.", "--", str(path), concept]
            where = f"{file.name}, {method.name} of {concept!r}"
            try:
                args = reader.parse_args(words)
                asked = erase.chosen(copy.copy(args))
                concepts, anchors = args.concepts
                asked.method.check_inputs(concepts, asked.settings)
            except (Failure, ValueError) as error:
                raise Failure(f"{where}: {error}") from None
            inputs = {
                "model": model,
                "config": config,
                "concepts": concepts,
                "method": method.name,
                "settings": asdict(asked.settings),
                **{option: getattr(args, option) for option in CHANGING},
            }
            text = json.dumps(inputs, sort_keys=True)
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            told = [f"{one} -> {anchors[one]}" if one in anchors else one for one in concepts]
            about = {
                "model": name,
                "concept": ", ".join(told),
                "kind": kind,
                "method": method.name,
                "settings": settings,
                "seed": seed,
            }
            cells.setdefault(key, Cell.of(key, output, args, about))
    return list(cells.values())


class _Plan:
    """A plan's file, read and checked as far as it can be without its methods' own checks."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.content = read_toml(file)
        for key in self.content:
            if key not in KEYS:
                self.fail(f"has an unknown key {key!r}; it may have {', '.join(KEYS)}")
        for key in KEYS[:3]:
            if not self.content.get(key):
                self.fail(f"names no {key}; docs/sweeps.md has an example")
        # As they are written, by their place beside the plan's file.
        self.models = {name: self.beside(name) for name in self.texts("models")}
        self.options = self._options()
        for path in self.models.values():
            check_model(path, self.config)
        self.seeds = self._seeds()
        self.concepts = self._concepts()
        self.methods = list(self._methods())

    def fail(self, what: str) -> NoReturn:
        raise Failure(f"{self.file.name} {what}.")

    def beside(self, name: str) -> Path:
        return (self.file.parent / name).absolute()

    def texts(self, key: str) -> list[str]:
        """A list of texts; a single text counts as a list of one."""
        return self._texts(self.content[key], key)

    def _texts(self, value: Any, what: str) -> list[str]:
        found = [value] if isinstance(value, str) else value
        is_list = isinstance(found, list) and found
        if not is_list or not all(isinstance(one, str) and one.strip() for one in found):
            self.fail(f'needs a list of texts as {what}, such as {what} = ["..."]')
        return list(dict.fromkeys(found))

    def table(self, value: Any, what: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(f"needs a table as {what}: a line [{what}] with its entries below")
        return value

    def _seeds(self) -> list[int]:
        found = self.content.get("seeds", 0)
        found = found if isinstance(found, list) else [found]
        if not found or not all(type(one) is int and one >= 0 for one in found):
            self.fail("needs a list of whole numbers from 0 on as seeds, such as seeds = [0, 1]")
        return list(dict.fromkeys(found))

    def _concepts(self) -> list[tuple[str, str]]:
        """(kind, concepts of one erasure), as `erase` reads them."""
        table = self.table(self.content["concepts"], "concepts")
        found = [(kind, one) for kind in table for one in self._texts(table[kind], kind)]
        for _, concept in found:
            if concept.startswith("@"):
                self.fail(f"names the file {concept} as a concept; write the concepts themselves")
        return found

    def _options(self) -> list[str]:
        table = self.table(self.content.get("options", {}), "options")
        self.config: Path | None = None
        words = []
        for name, value in table.items():
            option = name.replace("_", "-")
            if option not in OPTIONS:
                self.fail(f"has an unknown option {name!r}; options are {', '.join(OPTIONS)}")
            if option in SWITCHES:
                if not isinstance(value, bool):
                    self.fail(f"needs true or false for {name}, not {value!r}")
                words += [f"--{option}"] if value else []
                continue
            if isinstance(value, bool) or not isinstance(value, str | int):
                self.fail(f"needs one text or number for {name}, not {value!r}")
            if option == "config":
                value = self.config = self.beside(str(value))
            words.append(f"--{option}={value}")
        return words

    def _methods(self) -> Iterator[tuple[Method, dict[str, Any]]]:
        """(method, settings) for each combination of the values that are listed."""
        for name, tables in self.table(self.content["methods"], "methods").items():
            if name not in METHODS:
                self.fail(f"names an unknown method {name!r}; there are {', '.join(METHODS)}")
            for table in tables if isinstance(tables, list) else [tables]:
                table = self.table(table, f"methods.{name}")
                listed = {key: self._values(METHODS[name], key, table[key]) for key in table}
                for values in product(*listed.values()):
                    yield METHODS[name], dict(zip(listed, values))

    def _values(self, method: Method, key: str, value: Any) -> list[Any]:
        """The values of one setting. Raises Failure where the method has no such setting."""
        option = key.replace("_", "-")
        if option in OWN:
            self.fail(f"gives {key} to {method.name}; give it in {OWN[option]} instead")
        known = options_of(method)
        if option not in known:
            own = ", ".join(name for name in known if name not in OWN)
            self.fail(f"gives {method.name} an unknown setting {key!r}; it has {own}")
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(one, str | int | float) for one in values):
            self.fail(
                f"needs a value or a list of values for {key} of {method.name}: numbers, texts, "
                "true or false"
            )
        if known[option].type is bool and not all(isinstance(one, bool) for one in values):
            self.fail(f"needs true or false for {key} of {method.name}")
        return list({f"{type(one)}{one}": one for one in values}.values())

    def asked(self) -> Iterator[tuple[Method, str, str, dict[str, Any], int]]:
        """(method, kind, concept, settings, seed) of each cell of one model."""
        for (method, settings), (kind, concept), seed in product(
            self.methods, self.concepts, self.seeds
        ):
            yield method, kind, concept, settings, seed


class _Reader(argparse.ArgumentParser):
    """The parser of `erase`, for a plan: it raises its messages."""

    def error(self, message: str) -> NoReturn:
        found = re.fullmatch(r"argument (?:--)?([\w-]+): (.*?)\.?", message, re.S)
        raise Failure(f"{found[1]}: {found[2]}." if found else f"{message}.")


def options_of(method: Method) -> dict[str, Setting]:
    """A method's settings by the names of their options."""
    return {one.option: one for one in method.described.values() if one.option}


def _words(method: Method, settings: Mapping[str, Any]) -> list[str]:
    """The options of `erase` for a method and its settings."""
    words, known = [f"--method={method.name}"], options_of(method)
    for name, value in settings.items():
        option = name.replace("_", "-")
        if not isinstance(value, bool):
            words.append(f"--{option}={value}")
        elif known[option].type is bool:
            words.append(f"--{option}" if value else f"--no-{option}")
        elif known[option].turned_on is None:
            words.append(f"--{option}={str(value).lower()}")
        elif value:
            words.append(f"--{option}")
    return words


def read_toml(file: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises Failure where it cannot be read."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[no-redef]
        except ImportError:
            raise Failure(
                "Python 3.10 cannot read a plan by itself; install tomli with: pip install tomli"
            ) from None
    if not file.is_file():
        raise Failure(f"There is no plan {file}; docs/sweeps.md has an example.")
    try:
        return tomllib.loads(read_text(file))
    except tomllib.TOMLDecodeError as error:
        raise Failure(f"{file.name} is not TOML ({error}); correct it.") from None
    except ValueError:
        raise Failure(f"{file.name} is not a text file; name a plan.") from None


def signature(model: Path) -> str:
    """A hash of a model: its files' names and sizes, and a sample of what is in each.

    So a model may be moved, and another one in its place is noticed.
    """
    digest = hashlib.sha256()
    files = [model] if model.is_file() else sorted(model.rglob("*"))
    for file in files:
        hidden = any(part.startswith(".") for part in file.relative_to(model.parent).parts[1:])
        if not file.is_file() or hidden:
            continue
        size = file.stat().st_size
        name = "" if file == model else file.relative_to(model).as_posix()
        digest.update(f"{name}\n{size}\n".encode())
        with file.open("rb") as content:
            digest.update(content.read(SAMPLE))
            if size > SAMPLE:
                content.seek(max(SAMPLE, size - SAMPLE))
                digest.update(content.read())
    return digest.hexdigest()

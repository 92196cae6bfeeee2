"""Every method there is: what the files of this folder declare as METHOD.

A new file is enough: its node, its options and its row of the benchmark follow from it.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .parts.method import Method


def found(package: str) -> dict[str, Method]:
    """The methods of a package's files, by name: first those of the text encoder."""
    files = iter_modules(import_module(package).__path__)
    names = [file.name for file in files if not file.ispkg and f"{package}.{file.name}" != __name__]
    modules = [import_module(f"{package}.{name}") for name in names]
    methods = [module.METHOD for module in modules if hasattr(module, "METHOD")]
    methods.sort(key=lambda method: (method.part != "encoder", method.name))
    return {method.name: method for method in methods}


METHODS = found(__package__)
BASELINES = found(f"{__package__}.baselines")
"""They have no node and no command: they are there to compare with."""

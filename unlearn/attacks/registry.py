"""Every attack there is: what the files of this folder declare as ATTACK.

A new file is enough: the probe runs it, and its node and its command tell what it found.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .attack import Attack


def found(package: str) -> dict[str, Attack]:
    """The attacks of a package's files, by name, from weak to strong.

    First come those that find prompts, and of these first those that ask the original model alone.
    """
    files = iter_modules(import_module(package).__path__)
    names = [file.name for file in files if f"{package}.{file.name}" != __name__]
    modules = [import_module(f"{package}.{name}") for name in names]
    attacks = [module.ATTACK for module in modules if hasattr(module, "ATTACK")]
    attacks.sort(key=lambda a: (a.finds != "prompts", a.model != "original", a.name))
    return {attack.name: attack for attack in attacks}


ATTACKS = found(__package__)

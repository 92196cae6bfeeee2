"""cpdm: measure how close a model draws to a set of works, before and after an erasure."""

from __future__ import annotations

import argparse

from . import build as cpdm_build
from . import measure as cpdm_measure

HELP = "measure how close a model draws to originals: CPDM's copyright metric"
EXAMPLES = """
examples:
  python -m unlearn cpdm build sd21/ paintings/
      draws nine pictures of each prompt in paintings/caption.csv into paintings/generated/
  python -m unlearn cpdm build sd21/ paintings/ --erasure painter.safetensors --generated erased
      the same after an erasure, into paintings/erased/
  python -m unlearn cpdm measure paintings/ --clip clip-vit-large-patch14/ \\
          --inception pt_inception-2015-12-05-6726825d.pth --after erased --picture paintings.png
      how much further from paintings/anchors/ the pictures are after the erasure

The folder holds anchors/ (the works), caption.csv (columns image and prompt) and folders of
generated pictures, named <anchor>_<number>. CPDM's own data (Ma et al., arXiv 2403.12052) is not
part of this program; you can use any pictures that you have the right to use.
"""
TASKS = {"build": cpdm_build, "measure": cpdm_measure}


def add(parser: argparse.ArgumentParser) -> None:
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    for name, task in TASKS.items():
        task.add(tasks.add_parser(name, help=task.HELP, description=task.__doc__))


def run(args: argparse.Namespace) -> None:
    TASKS[args.task].run(args)

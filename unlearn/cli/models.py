"""Loading of models and erasures for the commands."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..core.erasure import Erasure, combine
from ..diffusers_backend.load import load_pipeline
from ..diffusers_backend.model import DiffusersModel
from ..diffusers_backend.model_folder import first_line
from .output import Failure


def device_of(name: str) -> torch.device:
    """The device of a --device option; "auto" takes a GPU if there is one. Raises Failure where
    there is no such device."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in available if available[kind]), "cpu")
    if not available.get(name, True):
        raise Failure(f"This machine has no {name} device; use --device cpu or auto.")
    return torch.device(name)


def load_model(path: Path, config: Path | None = None, whole: bool = False, **options):
    """A DiffusersModel from a file or folder. Raises ValueError or Failure for an unsupported
    model."""
    pipeline = load_pipeline(path, config, whole)
    try:
        return DiffusersModel(pipeline, **options)
    except (AttributeError, IndexError, KeyError, TypeError, ZeroDivisionError) as error:
        # Its parts can be loaded, but are not what their names say.
        raise Failure(
            f"{path} is not supported ({first_line(error)}); name a model whose parts are those of "
            "Stable Diffusion."
        ) from error


def given_model(args: argparse.Namespace) -> DiffusersModel:
    """The model that a command's arguments name, on its device and with its options."""
    device = device_of(args.device)
    model = load_model(
        args.model,
        args.config,
        size=None if args.size is None else (args.size, args.size),
        clip_skip=args.clip_skip,
        checkpointing=args.save_memory,
    )
    place(model, device, args.half)
    return model


def place(model: DiffusersModel, device: torch.device, half: bool) -> None:
    """Move the model to a device. half: convert the denoiser to half precision."""
    model.pipeline.to(device)
    if half:
        model.halve(torch.bfloat16 if device.type == "cpu" else torch.float16)


def load_erasures(files: list[Path], strengths: list[float]) -> Erasure:
    """The sum of the erasures in files, each times its strength.

    Raises Failure for a wrong number of strengths, and ErasureError for a file that is not an
    erasure and for erasures of different bases.
    """
    if len(strengths) not in (1, len(files)):
        raise Failure(
            f"There are {len(files)} erasures but {len(strengths)} strengths; give one strength "
            "for all, or one for each."
        )
    erasures = [Erasure.load(file) for file in files]
    for file, erasure in zip(files, erasures):
        if erasure.remark:
            print(f"{file.name}: {erasure.remark}", file=sys.stderr)
    return combine(erasures, strengths * len(files) if len(strengths) == 1 else strengths)

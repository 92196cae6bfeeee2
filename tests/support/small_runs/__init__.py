"""A host extension that makes the preparations of a training small, on the server that loads it.

By default mode balanced draws a dozen pictures for retention, encodes more than a thousand prompts,
and takes twenty steps for a picture. For the tests of nodes these numbers do not matter.
"""

import sys
from functools import partial


def make_small(science, *models, change=setattr, steps=6) -> None:
    """Make the runs of a package `unlearn` small.

    science: the package. models: classes that draw. change: sets an attribute; a test passes its
    monkeypatch's. steps: the default number of steps for a picture.
    """
    parts = science.methods.parts
    change(parts.retention.RetentionSet, "COUNT", parts.retention.RetentionSet.AT_ONCE)
    change(parts.closed_form, "SENTENCES", 8)
    change(parts.closed_form, "OTHERS", 16)
    solve = partial(parts.solve_prompts.SolveSettings, sentences=8, others=24)
    change(parts.solved_start, "SolveSettings", solve)
    change(science.prompts.other_names, "SAMPLE", 6)
    for model in models:
        change(model.sample, "__defaults__", (steps, 7.5))
        if hasattr(model, "preview"):
            change(model, "preview", live_picture)


def live_picture(model, prompt, seed):
    """Drawn once in a run, which shows one every second or so."""
    if not hasattr(model, "shown"):
        model.shown = model.decode_latents(model.sample([prompt], seed, steps=2))
    return model.shown


class SmallRuns:
    """A node that exists only if the loop below has found the pack, so that a test can check it."""

    RETURN_TYPES = ()
    FUNCTION = "nothing"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    def nothing(self) -> tuple:
        return ()


if __name__ != "small_runs":  # ComfyUI loads it under its path, tests import it by its name
    for module in list(sys.modules.values()):
        if {"comfy_entrypoint", "unlearn"} <= vars(module).keys():
            make_small(module.unlearn, module.nodes.backend.model.ComfyModel)
            NODE_CLASS_MAPPINGS = {"SmallRuns": SmallRuns}

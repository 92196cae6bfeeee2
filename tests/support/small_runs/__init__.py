"""A host extension: on a server that loads it, little is prepared before a network is trained.

By default mode balanced draws a dozen pictures to hold and encodes more than a thousand prompts,
and a picture takes twenty steps. How many does not matter to what the tests of nodes look at.
"""

import sys


def make_small(science, *models, change=setattr, steps=10) -> None:
    """science: the package `unlearn` whose runs are to be small; models: classes that draw.

    steps: of a picture, where nobody says in how many. change sets an attribute; a test gives its
    monkeypatch's.
    """
    parts = science.methods.parts
    change(parts.retention.RetentionSet, "COUNT", parts.retention.RetentionSet.AT_ONCE)
    change(parts.closed_form, "SENTENCES", 8)
    change(parts.closed_form, "OTHERS", 16)
    for model in models:
        change(model.sample, "__defaults__", (steps, 7.5))
        if hasattr(model, "preview"):
            change(model, "preview", live_picture)


def live_picture(model, prompt, seed):
    return model.decode_latents(model.sample([prompt], seed, steps=2))


class SmallRuns:
    """Says that it was done: it is there only where the loop below has found the pack."""

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

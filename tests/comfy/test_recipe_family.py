"""CONTRIBUTING.md's recipe for a model family: its examples, added to the tests, pass them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import layouts
import other_encoder_layouts
import pytest
import recipes
import test_layouts
import test_other_encoders
import torch
from layouts import Loaded

pytestmark = pytest.mark.usefixtures("node_body", "small_runs")

MODULES = {
    "tests/support/layouts.py": layouts,
    "tests/support/other_encoder_layouts.py": other_encoder_layouts,
    "tests/comfy/test_other_encoders.py": test_other_encoders,
}


@pytest.fixture(scope="module")
def families(pack: ModuleType) -> Iterator[dict[str, str]]:
    """{a dictionary: the name in it}, with the recipe's functions and entries in the modules."""
    named: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patched:
        for path, text in recipes.family_functions():
            found: dict[str, Any] = {}
            exec(text, vars(MODULES[path]), found)
            for name, function in found.items():
                patched.setattr(MODULES[path], name, function, raising=False)
        for dictionary, path, entry in recipes.family_entries():
            ((name, value),) = eval(f"{{{entry}}}", vars(MODULES[path])).items()
            patched.setitem(getattr(MODULES[path], dictionary), name, value)
            named[dictionary] = name
        yield named


@pytest.fixture(scope="module")
def built(families: dict[str, str]) -> Callable[[str], Loaded]:
    """What a dictionary's example is, built as the tests of its file build it."""

    def build(dictionary: str) -> Loaded:
        of = {"OTHERS": other_encoder_layouts, "LAYOUTS": layouts}[dictionary]
        with torch.inference_mode():
            return of.build(families[dictionary])

    return build


def test_the_recipe_names_a_text_encoder_and_a_denoiser(families: dict[str, str]) -> None:
    assert set(families) == {"OTHERS", "UNREAD", "LAYOUTS"}
    assert families["OTHERS"] == families["UNREAD"]
    # What -k finds, in the recipe's third step.
    for file, word, dictionary in (
        ("test_other_encoders", "three", "OTHERS"),
        ("test_layouts", "wide", "LAYOUTS"),
    ):
        assert f'-k "{file} and {word}"' in recipes.page()
        assert word in families[dictionary]


def test_the_text_encoder_passes_its_tests(
    pack: ModuleType, built: Callable[[str], Loaded], tmp_path: Path
) -> None:
    encoder, tests = built("OTHERS"), test_other_encoders
    stack = encoder.clip.cond_stage_model.get_submodule(tests.T5)
    assert len(stack) == 3, "the example is another encoder than its relative"
    tests.test_layers_that_go_unread_change_nothing_and_the_last_one_read_does(pack, encoder)
    tests.test_gradient_reaches_every_selected_weight(pack, encoder)
    tests.test_conditioning_changes_by_exactly_the_delta(pack, encoder, tmp_path)


def test_the_denoiser_passes_its_tests(pack: ModuleType, built: Callable[[str], Loaded]) -> None:
    denoiser, tests = built("LAYOUTS"), test_layouts
    assert denoiser.model.model.diffusion_model.model_channels == 64
    tests.test_gradient_reaches_every_selected_weight(pack, denoiser, "cross-attention", 0)
    tests.test_selections_share_out_all_layers(pack, denoiser)
    tests.test_edit_that_is_off_and_one_that_is_over_are_the_original(pack, denoiser)

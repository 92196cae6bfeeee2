"""What a network is held on: other prompts' own pictures, by the original model."""

from __future__ import annotations

import random

import torch
from noted import shift
from tiny import TinyNetworkModel

from unlearn.core.ddim import at
from unlearn.core.resume import Resume
from unlearn.methods.parts.retention import RetentionSet


def test_each_prompt_is_held_on_its_own_picture_by_the_original_model() -> None:
    model = TinyNetworkModel()
    with model.edit("denoiser", "cross-attention") as edit:
        shift(edit)
        held = RetentionSet(model, edit, (["cat"], "object"), ("tiger",), 5, Resume())
    original = TinyNetworkModel()
    assert len(held.prompts) == len(held.x0) == 12
    for i, (prompt, x0) in enumerate(zip(held.prompts, held.x0, strict=True)):
        assert torch.allclose(x0, original.sample([prompt], 5 + i)[0], atol=1e-4), prompt
    assert held.prompts[0] == ""
    assert sum("tiger" in prompt for prompt in held.prompts) == 6
    assert not any("cat" in prompt.replace(",", " ").split() for prompt in held.prompts)


def test_four_of_them_are_noised_each_with_noise_of_its_own_and_come_with_their_prompts() -> None:
    model = TinyNetworkModel()
    with model.edit("denoiser", "cross-attention") as edit:
        held = RetentionSet(model, edit, (["cat"], "object"), (), 0, Resume())
    x_t, prompts = held.add_noise(random.Random(3), torch.Generator().manual_seed(4), 500.0)
    which = random.Random(3).sample(range(12), 4)
    x0 = held.x0[which]
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(4))
    assert torch.equal(x_t, model.add_noise(x0, noise, at(500.0, x0)))
    for i, number in enumerate(which):
        own = model.encode([held.prompts[number]]).cross[0]
        assert torch.equal(prompts.single(i).cross[0], own)

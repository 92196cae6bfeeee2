"""The first token is read, and not learnt from."""

from __future__ import annotations

import torch
from torch import nn

from unlearn.core.first_token import first_token_detached


def test_what_is_made_of_the_first_token_gets_no_gradient_and_of_the_others_all() -> None:
    layers = nn.ModuleDict({"to_k": nn.Linear(2, 1, bias=False), "to_q": nn.Linear(2, 1)})
    tokens = torch.tensor([[[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]])
    plain = layers["to_k"](tokens)
    with first_token_detached(layers, ["to_k"]):
        keys, queries = layers["to_k"](tokens), layers["to_q"](tokens)
    assert torch.equal(keys, plain)
    (keys.sum() + queries.sum()).backward()
    assert layers["to_k"].weight.grad.tolist() == [[110.0, 220.0]]
    assert layers["to_q"].weight.grad.tolist() == [[111.0, 222.0]], "another layer is as it was"
    assert not layers["to_k"]._forward_hooks

"""What autograd keeps of a forward pass, counted."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef

FLOAT = 4  # bytes


@pytest.fixture
def kept(pack: ModuleType) -> ModuleType:
    return pack.nodes.backend.memory


def test_inputs_of_trained_layers_are_kept_and_of_others_not(kept: ModuleType) -> None:
    x, weight = torch.ones(3, 4), torch.ones(8, 4)
    for trained, size in ((True, 3 * 4 * FLOAT), (False, 0)):
        touched = kept.GradientTracer(["weight"])

        def forward(touched=touched, trained=trained) -> torch.Tensor:
            return F.linear(x, touched.changed("weight", weight) if trained else weight)

        assert kept.kept_bytes(forward, [weight], touched) == size


def test_weights_and_their_changed_copies_are_not_counted(kept: ModuleType) -> None:
    x, first, second = torch.ones(3, 4), torch.ones(8, 4), torch.ones(2, 8)
    touched = kept.GradientTracer(["first", "second"])

    def forward() -> torch.Tensor:
        hidden = F.linear(x, touched.changed("first", first))
        # Its gradient goes through the second layer, so that keeps its changed weight, too.
        return F.linear(hidden.relu(), touched.changed("second", second))

    kept_of = kept.kept_bytes(forward, [first, second], touched)
    assert kept_of == (3 * 4 + 3 * 8) * FLOAT  # x, and the one tensor behind relu


def test_what_is_kept_twice_counts_once(kept: ModuleType) -> None:
    x = torch.ones(5, requires_grad=True)
    y = torch.full((5,), 2.0)
    assert kept.kept_bytes(lambda: x * y + x * y, [], kept.GradientTracer([])) == 5 * FLOAT


def test_what_is_gone_counts_beside_what_came_in_its_place(kept: ModuleType) -> None:
    x = torch.ones(1000, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x
        for _ in range(5):
            y = y.exp()  # saves what it makes; the one before it is let go of
        return y

    assert kept.kept_bytes(forward, [], kept.GradientTracer([])) == 5 * 1000 * FLOAT


def test_counting_keeps_nothing_alive(kept: ModuleType) -> None:
    """By the storage: C++ may hold a tensor whose Python object is gone."""
    x, made = torch.ones(1000, requires_grad=True), []

    def forward() -> torch.Tensor:
        y = x.exp()
        made.append(StorageWeakRef(y.untyped_storage()))
        return y

    kept.kept_bytes(forward, [], kept.GradientTracer([]))
    assert made[0].expired()

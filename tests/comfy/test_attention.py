"""Gradients through attention, whatever kernel the host uses."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from layouts import build
from test_layouts import assert_gradients_agree, gradients

HEADS, WIDTH = 2, 8


@pytest.fixture
def kernels(pack: ModuleType) -> ModuleType:
    import comfy.ldm.modules.attention as kernels

    return kernels


def result(
    pack: ModuleType, function, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """(output, gradient of the queries) on fixed random numbers."""
    numbers = torch.randn(3, 1, 600, HEADS * WIDTH, generator=torch.Generator().manual_seed(0))
    q, k, v = numbers.to(dtype)
    q.requires_grad_(True)
    output = pack.nodes.backend.differentiable.differentiable(function, q, k, v, HEADS)
    output.square().sum().backward()
    return output.detach(), q.grad


def test_a_kernel_without_a_backward_pass_is_not_used(
    pack: ModuleType, kernels: ModuleType
) -> None:
    def attention_sage(*args, **kwargs):
        raise AssertionError("its gradient would end here")

    for found, wanted in zip(result(pack, attention_sage), result(pack, kernels.attention_pytorch)):
        assert torch.equal(found, wanted)


def test_where_memory_is_short_there_is_a_gradient_all_the_same(
    pack: ModuleType, kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels.model_management, "get_free_memory", lambda *_: (1024, 1024))
    q = torch.randn(1, 600, HEADS * WIDTH, requires_grad=True)
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        kernels.attention_sub_quad(q, q, q, HEADS)
    for dtype in (torch.float32, torch.float16):
        wanted = result(pack, kernels.attention_pytorch, dtype)
        for found, one in zip(result(pack, kernels.attention_sub_quad, dtype), wanted):
            assert torch.equal(found, one)


def test_on_a_cpu_pytorchs_is_taken_where_it_is_as_exact(
    pack: ModuleType, kernels: ModuleType
) -> None:
    """Of two that have a backward pass the faster one."""
    for dtype, wanted in (
        (torch.float32, kernels.attention_pytorch),
        (torch.float16, kernels.attention_sub_quad),
    ):
        q, k, v = torch.randn(3, 1, 600, HEADS * WIDTH).to(dtype)
        own = wanted(q, k, v, HEADS)
        taken = pack.nodes.backend.differentiable.differentiable(
            kernels.attention_sub_quad, q, k, v, HEADS
        )
        assert torch.equal(taken, own), dtype


def test_other_errors_come_through(pack: ModuleType) -> None:
    def attention_basic(*args, **kwargs):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        result(pack, attention_basic)


def test_a_kernel_that_another_node_has_put_in_does_not_stop_gradients(pack: ModuleType) -> None:
    with torch.inference_mode():
        loaded = build("sd15")
        wanted = gradients(pack, loaded, "cross-attention")

        def theirs(function, *args, **kwargs):
            return function(*args, **kwargs).detach()

        loaded.model.model_options["transformer_options"]["optimized_attention_override"] = theirs
        assert_gradients_agree(gradients(pack, loaded, "cross-attention"), wanted)

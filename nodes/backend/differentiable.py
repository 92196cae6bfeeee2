"""Replaces the host's kernels that have no backward pass with kernels that have one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import comfy.cli_args
import comfy.model_management as management
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch.utils import _python_dispatch as dispatch
from torch.utils._pytree import tree_leaves

# Functions of torch that can write their result into a given tensor. In newer hosts the blocks of
# language models end in `torch.add(residual, x, out=x)`. exp is left out on purpose: sub-quadratic
# attention uses it with `out=`, and its error is what makes `differentiable` below take PyTorch's
# attention instead.
WRITING = (
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"),
    *("addcmul", "addcdiv", "addmm", "addmv", "addbmm", "baddbmm", "lerp"),
    *("mm", "mv", "bmm", "matmul", "outer", "dot"),
    *("cat", "concat", "stack", "index_select", "gather", "where"),
    *("neg", "abs", "square", "pow", "sqrt", "rsqrt", "reciprocal", "log", "sin", "cos"),
    *("sigmoid", "tanh", "erf", "softmax", "clamp", "maximum", "minimum", "sum", "mean", "cumsum"),
)

# Options that stop the host from compiling, which newer versions do by default. The host's own
# training switches both off too.
# The class of the mode that `allow_mutation_on_saved_tensors` switches on.
WATCH = "_CloneArgBeforeMutateMode"
COMPILERS = ("disable_comfy_compiler", "disable_cuda_graphs")


@contextmanager
def trainable_kernels(encoder: torch.nn.Module) -> Iterator[None]:
    """All of the replacements below: inside, gradients pass through the host's kernels."""
    with ExitStack() as stack:
        stack.enter_context(differentiable_rotations())
        stack.enter_context(differentiable_products())
        stack.enter_context(differentiable_writing())
        stack.enter_context(own_attention(encoder))
        stack.enter_context(uncompiled())
        yield


@contextmanager
def differentiable_rotations() -> Iterator[None]:
    """Compute rotary embeddings with PyTorch: comfy_kitchen's kernels have no backward pass.

    Most of the host's networks avoid these kernels themselves when they are `in_training`; Cosmos
    Predict 2, Ernie and JoyImage do not.
    """
    try:
        import comfy_kitchen as kernels
        from comfy_kitchen.backends import eager
    except ImportError:  # an optional package, which older hosts do not know
        yield
        return
    # Functions that end in an underscore write into their input. The host does not use them in
    # training.
    before = {
        name: function
        for name, function in vars(kernels).items()
        if "_rope" in name and not name.endswith("_") and callable(getattr(eager, name, None))
    }
    try:
        for name in before:
            setattr(kernels, name, getattr(eager, name))
        yield
    finally:
        for name, function in before.items():
            setattr(kernels, name, function)


@contextmanager
def differentiable_products() -> Iterator[None]:
    """Compute products in the precision of the activations, not in fp8.

    With gradients an fp8 product fails, and the host falls back to the usual one. Without gradients
    it does not. So predictions with and without the edit would be computed differently, and the
    difference would be a good part of what the edit changes.
    """
    before = getattr(comfy.ops, "fp8_linear", None)
    if before is None:  # this host has no fp8 products
        yield
        return
    comfy.ops.fp8_linear = lambda *_: None  # what it returns for weights that are not fp8
    try:
        yield
    finally:
        comfy.ops.fp8_linear = before


@contextmanager
def differentiable_writing() -> Iterator[None]:
    """Let functions of torch write into a tensor (`out=`) when a gradient is needed.

    Torch refuses that. The functions change their behaviour only for tensors that need a gradient,
    so other threads are not affected. They are replaced in `torch` itself, because a torch function
    mode would miss the blocks that the backward pass computes again.
    """
    before = {name: getattr(torch, name) for name in WRITING if hasattr(torch, name)}
    try:
        for name, function in before.items():
            setattr(torch, name, _allowing_out(function))
        yield
    finally:
        for name, function in before.items():
            setattr(torch, name, function)


def _allowing_out(function: Callable) -> Callable:
    @functools.wraps(function)
    def run(*args, out=None, **kwargs):
        if out is None:
            return function(*args, **kwargs)
        leaves = tree_leaves((args, kwargs, out))
        if not torch.is_grad_enabled() or not any(_wants_gradient(leaf) for leaf in leaves):
            return function(*args, out=out, **kwargs)
        return _copied_to(function(*args, **kwargs), out)

    return run


def _wants_gradient(value) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _copied_to(result: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The result. It is copied into `out` as well, since the caller may read it there."""
    if out.is_leaf and out.requires_grad:
        return result  # never write over a trained weight
    if out.shape != result.shape:
        out.resize_(result.shape)
    try:
        return out.copy_(result)
    except RuntimeError as error:
        # Autograd cannot write into one piece of a tensor that was split or chunked.
        if "is a view" not in str(error):
            raise
        out.detach().copy_(result.detach())
        return result


@contextmanager
def own_attention(encoder: torch.nn.Module) -> Iterator[None]:
    """Give a text encoder the default attention where its file asks for a special kernel.

    Int8 kernels have no backward pass. A denoiser takes another kernel through its options (see
    `differentiable`); a text encoder has no such option.
    """
    asking = [
        (parent._modules, name, child)
        for parent in encoder.modules()
        for name, child in parent._modules.items()
        if type(child).__name__ == "ComfyAttention"
    ]
    try:
        for modules, name, child in asking:
            modules[name] = type(child)()
        yield
    finally:
        for modules, name, child in asking:
            modules[name] = child


@contextmanager
def uncompiled() -> Iterator[None]:
    """Switch off the compiler of newer hosts.

    It plans a block's memory for one forward pass, and may reuse what autograd keeps for the
    backward pass.
    """
    args = comfy.cli_args.args
    before = {name: getattr(args, name) for name in COMPILERS if hasattr(args, name)}
    try:
        for name in before:
            setattr(args, name, True)
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


HAVE_BACKWARD = (
    "attention_basic",
    "attention_pytorch",
    "attention_split",
    "attention_sub_quad",
    "attention_xformers",
)


def differentiable(function, q: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """Attention by the host's `function` if it has a backward pass, otherwise by PyTorch.

    The signature is that of the host's `optimized_attention_override`. SageAttention and
    FlashAttention, as the host calls them, have no backward pass, and the gradient would silently
    end there. Sub-quadratic attention, the host's choice on a CPU, takes 1.5 to 3 times as long as
    PyTorch's, so in float32 on a CPU PyTorch's is used. In half precision it is not, because there
    PyTorch's is less exact.
    """
    slow = q.device.type == "cpu" and q.dtype == torch.float32
    slow = slow and function.__name__ == "attention_sub_quad"
    if function.__name__ in HAVE_BACKWARD and not slow:
        try:
            return function(q, *args, **kwargs)
        except RuntimeError as error:
            # When memory is short, sub-quadratic attention uses `out=`, which has no gradient.
            if "automatic differentiation" not in str(error):
                raise
    return attention_pytorch(q, *args, **kwargs)


def untracked() -> AbstractContextManager[None]:
    """Work without the watch that `allow_mutation_on_saved_tensors` keeps over every operation.

    It takes two fifths of the time. This is for drawing and looking at pictures: no gradient is
    kept of that, and it writes into no tensor that a gradient needs. Any other mode stays.
    """
    if not hasattr(dispatch, "_pop_mode_temporarily"):  # names of PyTorch's own
        return nullcontext()
    mode = dispatch._get_current_dispatch_mode()
    return dispatch._pop_mode_temporarily() if type(mode).__name__ == WATCH else nullcontext()


@contextmanager
def in_one_stream() -> Iterator[None]:
    """Have the host fetch weights that lie on the CPU in the stream that computes with them.

    In streams of its own it waits for the forward pass alone before it writes the next weight over
    the last one's memory; autograd may still read there.
    """
    streams, management.NUM_STREAMS = management.NUM_STREAMS, 0
    try:
        yield
    finally:
        management.NUM_STREAMS = streams

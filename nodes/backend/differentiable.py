"""The host's kernels that have no backward pass, changed for ones that do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import comfy.cli_args
import comfy.model_management as management
import comfy.ops
import torch
from comfy.ldm.modules.attention import attention_pytorch
from torch.utils._pytree import tree_leaves

# Functions of torch that may be told to write their result into a tensor, as the blocks of newer
# hosts' language models end in `torch.add(residual, x, out=x)`. Not exp: where sub-quadratic
# attention writes by it, PyTorch's attention is to take its place (see attention.py).
WRITING = (
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide"),
    *("addcmul", "addcdiv", "addmm", "addmv", "addbmm", "baddbmm", "lerp"),
    *("mm", "mv", "bmm", "matmul", "outer", "dot"),
    *("cat", "concat", "stack", "index_select", "gather", "where"),
    *("neg", "abs", "square", "pow", "sqrt", "rsqrt", "reciprocal", "log", "sin", "cos"),
    *("sigmoid", "tanh", "erf", "softmax", "clamp", "maximum", "minimum", "sum", "mean", "cumsum"),
)

# What the host compiles by itself, newer versions by default. Their own training asks for neither.
COMPILERS = ("disable_comfy_compiler", "disable_cuda_graphs")


@contextmanager
def trainable_kernels(encoder: torch.nn.Module) -> Iterator[None]:
    """All of the below: while this lasts, gradients pass through what the host computes with."""
    with ExitStack() as stack:
        stack.enter_context(differentiable_rotations())
        stack.enter_context(differentiable_products())
        stack.enter_context(differentiable_writing())
        stack.enter_context(own_attention(encoder))
        stack.enter_context(uncompiled())
        yield


@contextmanager
def differentiable_rotations() -> Iterator[None]:
    """The host's rotary embeddings by PyTorch, not by comfy_kitchen's kernels, which have no
    backward pass.

    Most of the host's networks go around these by themselves `in_training`; those of Cosmos Predict
    2, Ernie and JoyImage do not.
    """
    try:
        import comfy_kitchen as kernels
        from comfy_kitchen.backends import eager
    except ImportError:  # the host does without, and older versions do not have it
        yield
        return
    # Those with an underscore behind write into their input, which the host does not in training.
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
    """Products in the precision that activations have, not in fp8.

    Those in fp8 fail where a gradient is wanted, and the host then takes the others: the network
    would compute otherwise with an edit than without, by a good part of what an edit changes.
    """
    before = getattr(comfy.ops, "fp8_linear", None)
    if before is None:  # a version of the host that computes none this way
        yield
        return
    comfy.ops.fp8_linear = lambda *_: None  # as for weights that are none
    try:
        yield
    finally:
        comfy.ops.fp8_linear = before


@contextmanager
def differentiable_writing() -> Iterator[None]:
    """Functions of torch that write into a tensor (`out=`), in a form that autograd takes.

    Torch refuses them where a gradient is wanted, and only there are they changed: what other
    threads compute meanwhile is computed as before. Also a block that a backward pass computes
    again comes here, which a mode of torch's would miss.
    """
    before = {name: getattr(torch, name) for name in WRITING if hasattr(torch, name)}
    try:
        for name, function in before.items():
            setattr(torch, name, _writing(function))
        yield
    finally:
        for name, function in before.items():
            setattr(torch, name, function)


def _writing(function: Callable) -> Callable:
    @functools.wraps(function)
    def run(*args, out=None, **kwargs):
        if out is None:
            return function(*args, **kwargs)
        leaves = tree_leaves((args, kwargs, out))
        if not torch.is_grad_enabled() or not any(_wants_gradient(leaf) for leaf in leaves):
            return function(*args, out=out, **kwargs)
        return _written(function(*args, **kwargs), out)

    return run


def _wants_gradient(value) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _written(result: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """The result, put into `out` too: the caller may read it from there."""
    if out.is_leaf and out.requires_grad:
        return result  # what is trained is never written over
    if out.shape != result.shape:
        out.resize_(result.shape)
    try:
        return out.copy_(result)
    except RuntimeError as error:
        # Autograd writes into no piece of a tensor that was cut into several at once.
        if "is a view" not in str(error):
            raise
        out.detach().copy_(result.detach())
        return result


@contextmanager
def own_attention(encoder: torch.nn.Module) -> Iterator[None]:
    """A text encoder whose file asks for a kernel of attention, as if it asked for none.

    Int8 kernels have no backward pass. A network is given another kernel from outside (see
    attention.py), which an encoder does not take.
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
    """Without what newer hosts compile: it plans a block's memory, and where its weights lie, for
    one forward pass, and autograd keeps some of that for the backward pass."""
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
    """The host's `function` where it has a backward pass, else PyTorch's own attention.

    SageAttention and FlashAttention, as the host calls them, have none: the gradient would end
    there without a word. Sub-quadratic attention, the host's choice on a CPU, takes one and a half
    to three times as long there as PyTorch's, which in half precision is less exact on a CPU. In
    the host's form of an override (`optimized_attention_override`).
    """
    slow = q.device.type == "cpu" and q.dtype == torch.float32
    slow = slow and function.__name__ == "attention_sub_quad"
    if function.__name__ in HAVE_BACKWARD and not slow:
        try:
            return function(q, *args, **kwargs)
        except RuntimeError as error:
            # Sub-quadratic attention works in pieces where memory is short, and these have none.
            if "automatic differentiation" not in str(error):
                raise
    return attention_pytorch(q, *args, **kwargs)


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

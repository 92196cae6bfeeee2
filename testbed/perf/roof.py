"""What the machine can do at most: its rate of matrix products, and its memory's bandwidth."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from statistics import median

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
BYTES = {"cpu": 2**28, "cuda": 2**32}  # copied at once: much more than a cache holds


def measure_roof(quick: bool) -> dict:
    """Operations a second by dtype, and bytes a second read and written, on random numbers."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    times = 3 if quick else 9
    dtypes = [torch.float32, torch.bfloat16]
    dtypes += [torch.float16] if device.type == "cuda" else [torch.float64]
    side, rates = SIDE[device.type], {}
    for dtype in dtypes:
        one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(one)
        seconds = timed(lambda: torch.mm(one, other, out=out), times, device)  # noqa: B023
        rates[name_of(dtype)] = 2 * side**3 / seconds
    source = torch.randn(BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), times, device)
    return {"rates": rates, "bandwidth": 2 * source.nbytes / seconds}


def timed(work: Callable[[], object], times: int, device: torch.device) -> float:
    """The median seconds of a piece of work, after one that does not count."""
    found = []
    for _ in range(times + 1):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        found.append(time.perf_counter() - began)
    return median(found[1:])


def synchronise(device: torch.device) -> None:
    """Wait until a device has done all that was begun."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Operations(TorchDispatchMode):
    """Counts floating-point operations inside the block, by the dtype that they are in.

    PyTorch has the formulas (torch.utils.flop_counter) but for the CPU's fused attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        more = more or {}
        out = function(*arguments, **more)
        packet = function._overloadpacket
        if packet in flop_registry:
            count = flop_registry[packet](*arguments, **more, out_val=out)
        elif packet in CPU_ATTENTION:
            first = 1 if "backward" in str(packet) else 0
            count = CPU_ATTENTION[packet] * attention(*arguments[first : first + 2])
        else:
            return out
        tensors = (x for x in arguments if isinstance(x, torch.Tensor))
        self.counts[name_of(next(tensors).dtype)] += int(count)
        return out


def attention(query: torch.Tensor, key: torch.Tensor) -> int:
    """Operations of one of attention's two products: (N, heads, tokens, width) each."""
    *batch, tokens, width = query.shape
    return 2 * torch.Size(batch).numel() * tokens * key.shape[-2] * width


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: 2,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: 5,
}
"""Products of the CPU's fused attention; its backward pass makes the scores anew."""

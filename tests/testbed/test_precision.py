"""bfloat16 only where it is faster."""

from __future__ import annotations

import pytest
import torch

from testbed.host import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has_kernels", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_computes_in_what_it_is_fast_in(
    has_kernels: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda _: has_kernels)
    x = torch.ones(2, 2)
    with precision.fast(CPU):
        assert (x @ x).dtype == dtype
    assert (x @ x).dtype == torch.float32


def test_without_onednn_a_cpu_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not precision.has_fast_bfloat16(CPU)
    assert precision.has_fast_bfloat16(torch.device("cuda"))

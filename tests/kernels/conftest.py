"""What kernel tests share: the device, and poisoned allocations."""

import pytest
import torch

with torch.device("meta"):
    # torch lists its constructors once, by identity: listed while they are poisoned, `torch.device` would pass over
    # the real ones for the rest of the process, and models built on meta would hold real weights.
    assert torch.empty(0).is_meta

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """`torch.empty` gives NaN (integers: a huge number): what a kernel forgets to write is seen."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poison(getattr(torch, name)))


def _poison(make):
    def poisoned(*args, **kwargs):
        made = make(*args, **kwargs)
        if torch.compiler.is_compiling() or type(made) is not torch.Tensor or made.is_meta:
            return made
        if made.dtype.is_floating_point:
            return made.fill_(float("nan"))
        return made.fill_(torch.iinfo(made.dtype).max // 2) if made.dtype in (torch.int32, torch.int64) else made

    return poisoned


@pytest.fixture
def device():
    """Where kernels are tried: the GPU if there is one."""
    return DEVICE

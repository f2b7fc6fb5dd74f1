"""Each tuning case launches the very row that it is there to tune: small, in the interpreter, or as it is on a GPU."""

import importlib
from dataclasses import replace

import pytest
import torch
from surgery.kernels.tuning import architecture, shipped
from surgery.kernels.tuning.case import cases, place
from surgery.kernels.tuning.pick import TABLES, substituted
from surgery.kernels.tuning.tune import tensors

NAMES = sorted(path.stem for path in TABLES.glob("*.json"))
# These offer their GPU kernels on no CPU; here they are to run in the interpreter.
FOR_GPUS_ALONE = ("block_decode", "gathered_ffn", "probe_select")


@pytest.fixture(autouse=True)
def triton_everywhere(monkeypatch):
    monkeypatch.setenv("SURGERY_KERNELS", "triton")
    for name in FOR_GPUS_ALONE:
        module = importlib.import_module(f"surgery.kernels.operators.{name}")
        monkeypatch.setattr(module, "ON_CPU", module.ON_CUDA)


def first_of_each_tile(name, device):
    """fp32, which the interpreter multiplies as a GPU does."""
    found = {}
    for case in cases(name, device):
        if case.dtype == "fp32":
            found.setdefault(case.tile, case)
    return list(found.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_case_launches_its_own_row(name, device):
    arch = architecture(torch.device(device))
    before = shipped(name, arch)
    chosen = first_of_each_tile(name, torch.device(device))
    assert {case.tile for case in chosen} == {row.tile for row in before if row.dtype == "fp32"}
    for case in chosen:
        own = next(row for row in before if place(row) == place(case))
        outputs = tensors(case.launch(own))
        assert outputs and not any(bool(each.isnan().any()) for each in outputs)
        others = tuple(row for row in before if (row.dtype, row.tile) != (own.dtype, own.tile))
        with substituted(name, arch, others), pytest.raises((LookupError, RuntimeError), match="no tuned row"):
            case.launch(replace(own, tile="none of its tiles"))
    assert shipped(name, arch) == before

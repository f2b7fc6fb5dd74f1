"""Surgery of a model on another device: on the GPU if there is one, else on one that is played (see `tests/elsewhere.py`)."""

import importlib

import elsewhere
import pytest
import torch

import surgery
from surgery.diagnostics import SurgeryError

SPECS = {
    "class embeddings": "model zoo:digits-dit\ndata digits samples=20 steps=4\nprune tail 66% of class embeddings",
    "gates": "model zoo:tasks-gpt\ndata tasks samples=64 calibration=75%\n"
    "sparsify attention 99% via gates steps=3 batch=8",
    "gates that follow data": "model zoo:tasks-gpt\ndata tasks samples=64 calibration=75%\n"
    "sparsify attention via gates steps=3 batch=8 follow=data dead=remove normalize=kept",
    "blocks": "model zoo:code-gpt\ndata stdlib samples=8 length=96 calibration=50%\n"
    "sparsify attention 60% via blocks block=16",
    "blocks of all": "model zoo:code-gpt\ndata stdlib samples=8 length=96 calibration=50%\n"
    "sparsify attention 60% via blocks block=16 normalize=all",
    "topk": "model zoo:code-gpt\ndata stdlib samples=8 length=48 calibration=50%\n"
    "sparsify attention 60% via topk score=predicted",
    "cuts": "model zoo:code-gpt\ndata stdlib samples=16 length=48 calibration=50%\nprune 25% of mlp channels by effect\n"
    "prune 25% of attention heads by taylor\nprune 1 layer by similarity\nheal steps=3 batch=4",
    "vocabulary": "model zoo:code-gpt\ndata stdlib samples=16 length=48 calibration=50%\nprune 25% of token embeddings",
}


@pytest.fixture
def device(monkeypatch):
    """`cuda:0`, real or played; capture, clock and the device's name are not played."""
    if torch.cuda.is_available():
        yield "cuda:0"
        return
    capture, interleave = map(importlib.import_module, ("surgery.anatomy.capture", "surgery.interleave"))
    trace, wall = capture._traced, interleave.sampler("cpu", "wall")
    monkeypatch.setattr(capture, "_traced", lambda *given: elsewhere.recorded(trace, *given))
    monkeypatch.setattr(interleave, "sample_cuda", lambda device: wall)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a device that is played")
    with elsewhere.Elsewhere():
        yield "cuda:0"


@pytest.mark.parametrize("name", SPECS)
def test_it_stays_where_it_was_put(name, device, tmp_path):
    result = surgery.compile(None, SPECS[name], device=device, timing=False)
    held = [*result.module.parameters(), *result.module.buffers()]
    assert {tensor.device for tensor in held} == {torch.device(device)}
    assert all(row["holds"] for row in result.report["parity"])
    if torch.cuda.is_available():  # what is played is not saved: its files are PyTorch's own
        loaded = surgery.load(result.save(tmp_path / "bundle")).to(device)
        inputs = {name: value.to(device) for name, value in result.example_inputs.items()}
        first = [torch.utils._pytree.tree_leaves(module(**inputs))[0] for module in (result.module, loaded)]
        assert torch.equal(*first)


def test_the_played_device_refuses_what_a_gpu_refuses():
    with elsewhere.Elsewhere():
        there, here = torch.ones(2, device="cuda:0"), torch.ones(2)
        assert there.device.type == "cuda" and (there * 2).device.type == "cuda" and here.device.type == "cpu"
        assert there.cpu().device.type == "cpu" and torch.nn.Linear(2, 2).to("cuda:0").weight.device.type == "cuda"
        assert torch.equal((there + here.to(there.device)).cpu(), torch.full((2,), 2.0))
        for mixed in (lambda: there + here, lambda: torch.ops.aten.mul.Tensor(here, there), there.numpy):
            with pytest.raises((RuntimeError, TypeError)):
                mixed()


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "meta", ""])
def test_a_device_that_is_not_here(name):
    with pytest.raises(SurgeryError) as caught:
        surgery.compile("zoo:digits-dit", "prune tail 66% of class embeddings", device=name)
    assert caught.value.diagnostics[0].code == "S215" and f"`{name}`" in str(caught.value) and "`cpu`" in str(caught.value)


def test_a_module_is_on_its_own_device(tiny):
    module, inputs = tiny
    with pytest.raises(SurgeryError) as caught:
        surgery.compile(module, "prune tail 50% of class embeddings", example_inputs=inputs, device="cpu")
    assert caught.value.diagnostics[0].code == "S215" and "module.to(device)" in str(caught.value)

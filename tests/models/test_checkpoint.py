"""A checkpoint is taken whole or refused by name; the module then stays as it was."""

import json

import pytest
import torch
from safetensors.torch import save_file

from surgery.diagnostics import SurgeryError
from surgery.models.checkpoint import fit, read_tensors, weight_files


def refusal(call, *args):
    with pytest.raises(SurgeryError) as caught:
        call(*args)
    return caught.value.diagnostics[0]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, path)
    return path


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_truncated_files(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    fault = refusal(read_tensors, saved)
    assert fault.code == "S202" and "bytes" in fault.notes[0]


def test_a_page_saved_under_the_checkpoints_name(saved):
    saved.write_text("<html>404</html>" * 20)
    assert refusal(read_tensors, saved).code == "S202"


def test_a_folder_under_the_checkpoints_name(tmp_path):
    assert refusal(read_tensors, tmp_path).code == "S202"


def test_missing_files(tmp_path):
    assert refusal(read_tensors, tmp_path / "model.safetensors").code == "S201"
    assert refusal(weight_files, tmp_path, "model").code == "S201"


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_unread(tmp_path, name):
    (tmp_path / name).write_bytes(b"never read")
    for fault in (refusal(read_tensors, tmp_path / name), refusal(weight_files, tmp_path, "model")):
        assert fault.code == "S205" and "model.safetensors" in fault.help


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("bias"), "1 missing: bias"),
        (lambda t: t.update(extra=torch.zeros(1)), "1 unexpected: extra"),
        (lambda t: t.update(bias=torch.zeros(3)), "1 of another shape: bias [3], the model has [2]"),
        (lambda t: t.update({f"x{i}": torch.zeros(1) for i in range(8)}), "x4, and 3 more"),
    ],
)
def test_foreign_checkpoints(change, told):
    module = torch.nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    change(tensors)
    fault = refusal(fit, module, tensors, "the layer")
    assert fault.code == "S203" and any(told in note for note in fault.notes)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(("value", "told"), [("nan", "1 NaN and 0 infinite"), ("-inf", "0 NaN and 1 infinite")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite(value, told, dtype):
    bias = torch.tensor([1.0, float(value)], dtype=dtype)
    fault = refusal(fit, torch.nn.Linear(3, 2), {"weight": torch.ones(2, 3), "bias": bias}, "the layer")
    assert fault.code == "S204" and fault.notes == (f"bias: {told} of 2 values",)


def test_half_precision_is_widened():
    module = torch.nn.Linear(3, 2)
    fit(module, {"weight": torch.full((2, 3), 0.5).half(), "bias": torch.zeros(2).half()}, "the layer")
    assert module.weight.dtype == torch.float32 and module.weight[0, 0].item() == 0.5


def shard(folder, weight_map):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def test_shards_are_found_through_their_index(tmp_path):
    shard(tmp_path, {"weight": "a.safetensors", "bias": "b.safetensors"})
    save_file({"weight": torch.ones(1)}, tmp_path / "a.safetensors")
    fault = refusal(weight_files, tmp_path, "model")
    assert fault.code == "S201" and "b.safetensors" in fault.message
    save_file({"bias": torch.ones(1)}, tmp_path / "b.safetensors")
    assert [path.name for path in weight_files(tmp_path, "model")] == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"weight": "../a.safetensors"}}'])
def test_a_damaged_or_escaping_index(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert refusal(weight_files, tmp_path, "model").code == "S202"

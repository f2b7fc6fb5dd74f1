"""Data fits the model it is opened for, or says why not."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from surgery.diagnostics import SurgeryError
from surgery.models import LoadedModel, open_model
from surgery.models.data import open_data, schemes


@pytest.fixture(scope="module")
def dit():
    return open_model("zoo:digits-dit", weights=False)


PLAIN = LoadedModel(
    "tests:plain", nn.Identity(), {"input_ids": torch.tensor([[4, 7], [7, 9]]), "scale": torch.ones(2, 3)}
)
POSITIONAL = LoadedModel("tests:positional", nn.Identity(), (torch.zeros(2, 3),))


def refusal(reference, model, **settings):
    with pytest.raises(SurgeryError) as caught:
        open_data(reference, model, **settings)
    return caught.value.diagnostics[0]


def test_the_schemes():
    assert schemes() == ("digits", "images", "jsonl", "noise", "stdlib", "tasks", "tensors", "text")


def test_digits_for_a_diffusion_model(dit):
    data = open_data("digits", dit, samples=2000, seed=3, steps=25)
    assert list(data.inputs) == ["x", "t", "y"] and {len(value) for value in data.inputs.values()} == {299}
    assert data.clean.shape == (299, 1, 8, 8) and data.real.shape == (1797, 1, 8, 8)
    assert len(data.sha256) == 64
    again = open_data("digits", dit, seed=3)
    assert all(torch.equal(again.inputs[name], value) for name, value in data.inputs.items())


def test_digits_for_the_classifier():
    data = open_data("digits", open_model("zoo:digits-classifier"))
    assert torch.equal(data.inputs["images"], data.clean)


def test_noise_has_the_models_names_shapes_and_dtypes():
    inputs = open_data("noise", PLAIN, samples=5, seed=1).inputs
    assert inputs["input_ids"].shape == (5, 2) and inputs["scale"].shape == (5, 3)
    assert inputs["input_ids"].dtype == torch.int64
    assert set(inputs["input_ids"].flatten().tolist()) <= {4, 7, 9}


def test_noise_depends_on_the_seed_alone():
    one, same, other = (open_data("noise", PLAIN, seed=seed) for seed in (1, 1, 2))
    assert one.sha256 == same.sha256 != other.sha256


def test_noise_for_a_diffusion_model_follows_its_schedule(dit):
    inputs = open_data("noise", dit, samples=100).inputs
    assert inputs["t"].max() > 500 and inputs["t"].max() <= 990
    assert inputs["y"].unique().tolist() == list(range(10))


def test_noise_stays_small_where_many_samples_are_generated(dit):
    assert len(open_data("noise", dit, samples=50_000).inputs["x"]) == 512


def test_tensors_by_input_name(tmp_path):
    file = tmp_path / "inputs.safetensors"
    save_file({"input_ids": torch.ones(6, 2, dtype=torch.long), "scale": torch.ones(6, 3)}, file)
    assert len(open_data(f"tensors:{file}", PLAIN).inputs["scale"]) == 6
    quoted = open_data(f'tensors:"{file}"', PLAIN, samples=4)
    assert len(quoted.inputs["scale"]) == 4 and quoted.clean is None
    assert len(quoted.sha256) == 64


def test_tensors_of_which_some_calibrate(tmp_path):
    file = tmp_path / "inputs.safetensors"
    ids = torch.arange(12).reshape(6, 2)
    save_file({"input_ids": ids, "scale": ids[:, :1].repeat(1, 3).float()}, file)
    data = open_data(f"tensors:{file}", PLAIN, calibration=2, seed=1)
    assert data.inputs["input_ids"].shape == (4, 2) and data.calibration["scale"].shape == (2, 3)
    both = [*data.inputs["input_ids"].tolist(), *data.calibration["input_ids"].tolist()]
    assert sorted(both) == ids.tolist()
    assert torch.equal(data.calibration["scale"][:, 0], data.calibration["input_ids"][:, 0].float())
    assert torch.equal(open_data(f"tensors:{file}", PLAIN, calibration=0).inputs["input_ids"], ids)
    assert refusal(f"tensors:{file}", PLAIN, calibration=6).code == "S212"


def test_clean_samples_and_labels_for_a_diffusion_model(tmp_path, dit):
    file = tmp_path / "clean.safetensors"
    save_file({"x": torch.zeros(6, 1, 8, 8), "y": torch.arange(6)}, file)
    data = open_data(f"tensors:{file}", dit)
    assert data.clean.shape == (6, 1, 8, 8) and data.labels.tolist() == list(range(6))


@pytest.mark.parametrize(
    ("tensors", "model", "code", "told"),
    [
        ({"ids": torch.ones(3, 2)}, PLAIN, "S212", "missing: input_ids"),
        ({"input_ids": torch.ones(3, 2), "scale": torch.ones(4, 3)}, PLAIN, "S212", "scale: 4 rows"),
        ({"input_ids": torch.tensor(3)}, PLAIN, "S212", "input_ids: 0 rows"),
        ({"scale": torch.full((2, 3), float("nan"))}, PLAIN, "S204", "scale: 6 NaN"),
        ({"x": torch.zeros(2, 3, 8, 8), "y": torch.arange(2)}, "zoo:digits-dit", "S212", "x is [N, 1, 8, 8]"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, tensors, model, code, told):
    file = tmp_path / "inputs.safetensors"
    save_file(tensors, file)
    model = open_model(model, weights=False) if isinstance(model, str) else model
    fault = refusal(f"tensors:{file}", model)
    assert fault.code == code
    assert told in " ".join([fault.message, *fault.notes, fault.help])


@pytest.mark.parametrize(
    ("reference", "model", "code", "told"),
    [
        ("digit", PLAIN, "S211", "did you mean `digits`?"),
        ("digits:here", "zoo:digits-dit", "S211", "takes no path"),
        ("noise:here", PLAIN, "S211", "takes no path"),
        ("digits", PLAIN, "S212", "does not fit"),
        ("noise", POSITIONAL, "S212", "keyword tensors"),
        ("tensors:absent.safetensors", PLAIN, "S201", "absent.safetensors"),
        ("tensors:inputs.pt", PLAIN, "S205", "pickle"),
    ],
)
def test_data_that_is_refused(reference, model, code, told):
    model = open_model(model, weights=False) if isinstance(model, str) else model
    fault = refusal(reference, model)
    assert fault.code == code
    assert told in " ".join([fault.message, *fault.notes, fault.help])


def test_an_unknown_setting(dit):
    fault = refusal("digits", dit, sampels=3)
    assert fault.code == "S211" and fault.help == "did you mean `samples`?"

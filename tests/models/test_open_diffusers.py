"""`diffusers:PATH`: a DiT alone and in its pipeline folder, and every way such a folder can be wrong."""

import json
import sys

import pytest
import torch

from surgery.diagnostics import SurgeryError
from surgery.models import open_model
from surgery.models.data import open_data
from surgery.verify.quality import DiffusionQuality, OutputQuality, quality

diffusers = pytest.importorskip("diffusers")

CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 3,
    "out_channels": 6,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(**CONFIG).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def folder(tmp_path, network):
    network.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def pipeline(tmp_path, network):
    network.save_pretrained(tmp_path / "transformer")
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=50, beta_schedule="scaled_linear", beta_end=0.03)
    scheduler.save_pretrained(tmp_path / "scheduler")
    return tmp_path


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(folder, **options):
    with pytest.raises(SurgeryError) as caught:
        open_model(f"diffusers:{folder}", **options)
    return caught.value.diagnostics[0]


def test_a_saved_network(folder, network):
    model = open_model(f"diffusers:{folder}")
    assert list(model.example_inputs) == ["hidden_states", "timestep", "class_labels"]
    assert model.example_inputs["timestep"].dtype == torch.int64
    expected = network(**model.example_inputs).sample
    assert torch.equal(model.module(**model.example_inputs).sample, expected)
    assert model.diffusion.length == 1000 and model.diffusion.null_class == 10
    assert model.files.keys() == {"diffusion_pytorch_model.safetensors"}
    assert model.default_data is None


def test_a_pipeline_brings_its_schedule(pipeline):
    diffusion = open_model(f"diffusers:{pipeline}").diffusion
    expected = torch.linspace(0.0001**0.5, 0.03**0.5, 50, dtype=torch.float64) ** 2
    torch.testing.assert_close(diffusion.betas, expected, rtol=1e-5, atol=0)
    assert diffusion.time_input(torch.tensor([49, 0])).tolist() == [49, 0]


def test_what_older_pipelines_call_a_dit(folder):
    edit(folder / "config.json", _class_name="Transformer2DModel", norm_type="ada_norm_zero")
    assert type(open_model(f"diffusers:{folder}").module).__name__ == "DiTTransformer2DModel"


def test_without_weights_no_checkpoint_is_needed(folder):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    model = open_model(f"diffusers:{folder}", weights=False)
    assert all(parameter.is_meta for parameter in model.module.parameters())
    assert refusal(folder).code == "S201"


def test_denoising_loss_and_paired_error_without_a_classifier(folder, tmp_path):
    from safetensors.torch import save_file

    model = open_model(f"diffusers:{folder}")
    latents = tmp_path / "latents.safetensors"
    save_file({"hidden_states": torch.randn(6, 3, 8, 8), "class_labels": torch.arange(6)}, latents)
    test = quality(model, open_data(f"tensors:{latents}", model), samples=3, seed=0, steps=2)
    assert isinstance(test, DiffusionQuality)
    measured = test.measure(model.module)
    assert set(measured.metrics) == {"denoising loss"} and set(measured.absent) == {"accuracy", "frechet"}
    assert test.compare(measured, measured) == {"paired error": 0.0}


def test_noise_measures_output_error(folder):
    model = open_model(f"diffusers:{folder}")
    test = quality(model, open_data("noise", model, samples=4), samples=4, seed=0)
    assert isinstance(test, OutputQuality)
    assert test.measure(model.module).paired == {"output error": 0.0, "output cosine": 1.0}


@pytest.mark.parametrize(
    ("changes", "code", "told"),
    [
        ({"_class_name": "SD3Transformer2DModel"}, "S209", "SD3Transformer2DModel, not a DiT"),
        ({"_class_name": None}, "S209", "no named class"),
        ({"norm_type": "layer_norm"}, "S209", "not a DiT"),
        ({"num_layers": "two"}, "S209", "cannot build"),
        ({"num_layers": 3}, "S203", "missing: transformer_blocks.2"),
        ({"num_layers": 1}, "S203", "unexpected: transformer_blocks.1"),
        ({"num_embeds_ada_norm": 1000}, "S203", "of another shape"),
    ],
)
def test_a_config_that_does_not_fit(folder, changes, code, told):
    edit(folder / "config.json", **changes)
    fault = refusal(folder)
    assert fault.code == code
    assert told in " ".join([fault.message, *fault.notes])


@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_a_config_that_is_no_object(folder, text):
    (folder / "config.json").write_text(text)
    assert refusal(folder).code == "S209"


def test_a_folder_without_a_config(tmp_path):
    assert refusal(tmp_path).code == "S201"


def test_a_schedule_that_does_not_predict_noise(pipeline):
    edit(pipeline / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert "v_prediction" in refusal(pipeline).message


def test_a_pickled_checkpoint(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "diffusion_pytorch_model.bin")
    assert refusal(folder).code == "S205"


def test_a_truncated_checkpoint(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert refusal(folder).code == "S202"


def test_nan_weights_are_named(folder, network):
    from safetensors.torch import save_file

    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    tensors["proj_out_1.bias"][0] = float("nan")
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    fault = refusal(folder)
    assert fault.code == "S204" and "proj_out_1.bias: 1 NaN" in fault.notes[0]


def test_without_diffusers_the_cure_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    fault = refusal(folder)
    assert fault.code == "S206" and fault.help == "pip install 'model-surgery[diffusion]'"

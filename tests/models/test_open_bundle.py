"""A saved bundle opens like any model: with its inputs, its noise schedule and its data."""

import pytest
import saved
import torch

from surgery import bundle
from surgery.anatomy.capture import capture
from surgery.diagnostics import SurgeryError
from surgery.models import open_model
from surgery.models.data import open_data
from surgery.models.diffusion import Diffusion


@pytest.fixture(scope="module")
def original():
    return open_model("zoo:digits-sit")


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    manifest = {"diffusion": original.diffusion.document(), "data": {"reference": "digits"}}
    graph = capture(original.module, original.example_inputs)
    return bundle.save(tmp_path_factory.mktemp("saved") / "sit", graph, manifest=manifest)


def test_a_bundle_opens_ready_to_run(original, folder):
    model = open_model(str(folder))
    shapes = {name: (value.shape, value.dtype) for name, value in model.example_inputs.items()}
    assert shapes == {name: (value.shape, value.dtype) for name, value in original.example_inputs.items()}
    assert torch.equal(model.module(**original.example_inputs), original.module(**original.example_inputs))
    assert model.default_data == "digits"
    assert torch.equal(model.diffusion.signal, original.diffusion.signal)
    assert model.files.keys() == {"model.safetensors"}


def test_a_bundle_without_weights_is_on_meta(folder):
    model = open_model(f"bundle:{folder}", weights=False)
    assert all(value.is_meta for value in [*model.module.state_dict().values(), *model.example_inputs.values()])


def test_a_bundle_of_a_library_s_model_reads_text_again(tmp_path):
    pytest.importorskip("transformers")
    original = open_model(f"hf:{saved.save('bert', tmp_path / 'bert')}")
    source = {name: value for name, value in original.source.items() if name != "tokenizer_files"}
    graph = capture(original.module, original.example_inputs)
    folder = bundle.save(
        tmp_path / "out", graph, manifest={"source": source}, extra=original.source["tokenizer_files"]
    )
    model = open_model(str(folder))
    assert model.source == original.source
    example = model.example_inputs
    assert {name: value.shape for name, value in example.items()} == {"input_ids": (2, 12), "attention_mask": (2, 12)}
    assert example["attention_mask"].all() and example["input_ids"].unique().numel() > 5
    text = saved.corpus(tmp_path / "corpus.txt")
    found = [open_data(f"text:{text}", each, samples=20) for each in (original, model)]
    assert torch.equal(found[0].inputs["input_ids"], found[1].inputs["input_ids"]) and found[1].task == "embedding"


def test_a_schedule_survives_as_a_document(original):
    again = Diffusion.from_document(original.diffusion.document())
    assert again.document() == original.diffusion.document()
    assert again.sample_shape == (1, 8, 8) and again.inputs == ("x", "t", "y")


@pytest.mark.parametrize(
    "change",
    [lambda d: d.pop("betas"), lambda d: d.update(betas=["x"]), lambda d: d.update(sigma=1), lambda d: d.pop("inputs")],
)
def test_a_damaged_schedule_is_refused(original, change):
    document = original.diffusion.document()
    change(document)
    with pytest.raises(SurgeryError) as caught:
        Diffusion.from_document(document)
    assert caught.value.diagnostics[0].code == "S209"

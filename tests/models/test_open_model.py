"""Every kind of reference opens; every wrong one says what is wrong and what cures it."""

import sys
import textwrap

import pytest
import torch

from surgery.diagnostics import SurgeryError
from surgery.models import open_model
from surgery.models.reference import schemes, split_reference


def refusal(reference, **options):
    with pytest.raises(SurgeryError) as caught:
        open_model(reference, **options)
    return caught.value.diagnostics[0]


@pytest.mark.parametrize(
    ("reference", "scheme"),
    [
        ("zoo:digits-dit", "zoo"),
        ("diffusers:./my-dit", "diffusers"),
        ("diffusers:/data/a:b", "diffusers"),
        ("./build/quickstart", "bundle"),
        ("quickstart", "bundle"),
        ("bundle:quickstart", "bundle"),
        ("./odd:folder", "bundle"),
        ("package.module:make", "python"),
        ("package.module:Maker.make", "python"),
    ],
)
def test_a_reference_names_its_scheme(reference, scheme):
    assert split_reference(reference)[0] == scheme
    assert scheme in schemes()


@pytest.mark.parametrize(
    ("reference", "code", "help"),
    [
        ("zo:digits-dit", "S200", "did you mean `zoo`?"),
        ("difusers:model", "S200", "did you mean `diffusers`?"),
        ("ftp://host/model", "S200", "one of"),
        ("", "S200", "zoo:digits-dit"),
        ("  ", "S200", "zoo:digits-dit"),
        ("zoo:digits-dti", "S201", "did you mean `digits-dit`?"),
        ("zoo:", "S201", "digits-dit"),
        ("./nowhere", "S201", "a path names a bundle"),
        ("digits-dit", "S201", "did you mean `zoo:digits-dit`?"),
        ("diffusers:./nowhere", "S201", "save_pretrained"),
        ("package.module:make", "S207", "--model package.module:make"),
    ],
)
def test_a_wrong_reference_has_a_cure(reference, code, help):
    fault = refusal(reference)
    assert fault.code == code
    assert help in fault.help


def test_the_zoo_opens_ready_to_run():
    model = open_model("zoo:digits-dit")
    assert not model.module.training
    assert model.default_data == "digits"
    assert model.files.keys() == {"digits-dit.safetensors"}
    output = model.module(**model.example_inputs)
    assert output.shape == (2, 1, 8, 8) and torch.isfinite(output).all()
    assert model.diffusion.inputs == tuple(model.example_inputs)


@pytest.mark.parametrize("reference", ["zoo:digits-dit", "zoo:digits-sit", "zoo:digits-classifier"])
def test_without_weights_everything_is_on_meta(reference):
    model = open_model(reference, weights=False)
    tensors = [*model.module.state_dict().values(), *model.example_inputs.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert model.files == {}
    assert model.module(**model.example_inputs).is_meta


def test_a_folder_that_is_no_bundle(tmp_path):
    assert refusal(str(tmp_path)).code == "S210"
    (tmp_path / "config.json").write_text("{}")
    assert f"diffusers:{tmp_path}" in refusal(str(tmp_path)).help
    assert "not a file in it" in refusal(str(tmp_path / "config.json")).help


FACTORIES = """
    import torch

    def pair():
        return torch.nn.Linear(3, 2), {"input": torch.zeros(2, 3)}

    def alone():
        return torch.nn.Linear(3, 2)

    def tensor():
        return torch.nn.Linear(3, 2), torch.zeros(2, 3)

    def nothing():
        return None

    def words():
        return torch.nn.Linear(3, 2), {"input": "text"}

    def broken():
        return 1 / 0

    def diverged():
        layer = torch.nn.Linear(3, 2)
        layer.bias.data[1] = float("nan")
        return layer

    constant = 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "surgery_test_factories.py").write_text(textwrap.dedent(FACTORIES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "surgery_test_factories"
    sys.modules.pop("surgery_test_factories", None)


def test_a_factory_in_the_working_folder(factories):
    pair = open_model(f"{factories}:pair", allow_import=True)
    assert pair.module(**pair.example_inputs).shape == (2, 2)
    assert isinstance(open_model(f"{factories}:tensor", allow_import=True).example_inputs, tuple)
    assert open_model(f"{factories}:alone", allow_import=True).example_inputs == {}
    assert open_model(f"{factories}:pair", allow_import=True, weights=False).module.weight.is_meta


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("nothing", "S208", "returned NoneType"),
        ("words", "S208", "not tensors"),
        ("broken", "S208", "ZeroDivisionError"),
        ("diverged", "S204", "bias: 1 NaN"),
        ("constant", "S208", "not a function"),
        ("pear", "S208", "did you mean `pair`?"),
    ],
)
def test_a_factory_that_gives_no_model(factories, name, code, told):
    fault = refusal(f"{factories}:{name}", allow_import=True)
    assert fault.code == code
    assert told in " ".join([fault.message, fault.help, *fault.notes])


def test_a_module_that_cannot_be_imported(factories):
    fault = refusal("surgery_test_absent.module:make", allow_import=True)
    assert fault.code == "S208" and "ModuleNotFoundError" in fault.message


def test_nothing_is_imported_for_a_spec(factories):
    assert refusal(f"{factories}:pair").code == "S207"
    assert factories not in sys.modules

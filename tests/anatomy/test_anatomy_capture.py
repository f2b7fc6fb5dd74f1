"""Capture: batches, modes, ways to give inputs, and models that cannot be captured."""

import pytest
import strangers
import torch
from torch import nn

from surgery.anatomy import capture, inspect
from surgery.anatomy.capture import call, with_batch
from surgery.anatomy.graphs import attribute, placeholders, shape
from surgery.diagnostics import CaptureError


class Branch(nn.Module):
    def forward(self, x):
        if x.mean() > 0:  # the culprit
            return x
        return -x


class Item(nn.Module):
    def forward(self, x):
        return x if x.sum().item() > 1 else -x  # the culprit


class Numpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy() * 2)  # the culprit


class Opaque(nn.Module):
    def forward(self, x):
        return Branch()


class Missing(nn.Module):
    """A mask that is not given: the line that reads it is told."""

    def forward(self, x, mask=None):
        return x.masked_fill(mask.logical_not(), 0)  # the culprit


class Counted(nn.Module):
    """Code that fixes the length of ids."""

    def forward(self, ids):
        return torch.stack([ids[:, place] for place in range(4)], 1).unbind(1)[ids.shape[1] - 1]


class Options(nn.Module):
    def forward(self, x, scale=1.0, flip=False):
        return -x * scale if flip else x * scale


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.frozen = nn.Dropout(0.5), nn.Dropout(0.5).eval()

    def forward(self, x):
        return self.frozen(self.inner(x))


X = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("model", "cure"),
    [
        (Branch(), "torch.where"),
        (Item(), "torch.where"),
        (Numpy(), "keep numpy"),
        (Missing(), "such as attention_mask"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_culprit_is_named_with_its_line_and_a_cure(model, cure, capfd):
    with pytest.raises(CaptureError) as caught:
        capture(model, (X,))
    (fault,) = caught.value.diagnostics
    assert fault.code == "S302" and cure in fault.help
    assert "test_anatomy_capture.py:" in fault.notes[0] and fault.notes[0].endswith("# the culprit")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("model", "inputs", "code", "said"),
    [
        (Options(), {"z": X}, "S301", "missing a required argument: 'x'"),
        (Options(), {"x": X, "z": X}, "S301", "got an unexpected keyword argument 'z'"),
        (Options(), (), "S301", "missing a required argument: 'x'"),
        (Options(), (X, 1.0, True, 4), "S301", "too many positional arguments"),
        (Options(), X, "S301", "example inputs are a Tensor"),
        (Options(), "x", "S301", "example inputs are a str"),
        (nn.Linear(4, 4), (X,), "S302", "check the shapes"),
        (nn.Linear(3, 3), ("x",), "S302", "example inputs are tensors"),
        (Opaque(), (X,), "S302", "return tensors, tuples and dicts alone"),
    ],
)
def test_inputs_and_outputs_that_do_not_fit(model, inputs, code, said):
    with pytest.raises(CaptureError) as caught:
        capture(model, inputs)
    (fault,) = caught.value.diagnostics
    assert fault.code == code and said in f"{fault.message} {fault.help}"


def test_options_beside_tensors_are_taken():
    graph_module = capture(Options(), {"x": X, "scale": 2.0, "flip": True})
    assert torch.equal(graph_module(x=X, scale=2.0, flip=True), -2 * X)


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_the_batch_is_free_whatever_the_example(batch):
    model = strangers.make(strangers.Plain)
    graph_module = capture(model, strangers.inputs_of(model, batch))
    for other in (1, 4):
        inputs = strangers.inputs_of(model, other)
        assert torch.allclose(graph_module(**inputs), model(**inputs), atol=1e-6)


def test_a_batch_fixed_by_the_code_is_noted():
    anatomy = strangers.anatomy_of("FixedBatch")
    assert anatomy.notes[0].startswith("the batch is fixed to 2: Constraints violated")
    assert [shape(node)[0] for node in placeholders(anatomy.graph_module)] == [2, 2, 2]
    assert strangers.anatomy_of("Plain").notes == ()


def test_a_length_fixed_by_the_code_is_noted():
    graph_module = capture(Counted(), (torch.ones(2, 4, dtype=torch.int64),))
    assert graph_module.meta["notes"] == ("the length of `ids` is fixed to 4 by the model's code",)


def test_modes_and_tensors_of_the_model_stay():
    model = Dropping().train()
    model.frozen.eval()
    graph_module = capture(model, (X,))
    assert (model.training, model.inner.training, model.frozen.training) == (True, True, False)
    assert torch.equal(graph_module(X), X)


def test_modes_come_back_when_capture_fails():
    model = nn.Sequential(Dropping(), Branch()).train()
    with pytest.raises(CaptureError):
        capture(model, (X,))
    assert model.training and model[0].inner.training


def test_the_graph_shares_the_models_tensors_and_reads_each_by_one_name():
    model = strangers.make(strangers.SharedModulation)
    graph_module = capture(model, strangers.inputs_of(model))
    names = {node.target for node in graph_module.graph.nodes if node.op == "get_attr"}
    assert "blocks.0.modulation.weight" in names and "blocks.1.modulation.weight" not in names
    assert attribute(graph_module, "table.weight") is model.table.weight


def test_a_captured_graph_is_captured_already():
    graph_module = strangers.anatomy_of("Plain").graph_module
    assert capture(graph_module, {}) is graph_module


def test_weights_on_the_meta_device_will_do():
    with torch.device("meta"):
        model = strangers.Plain().eval()
    anatomy = inspect(model, strangers.inputs_of(strangers.make(strangers.Plain)))
    assert anatomy.sites == strangers.anatomy_of("Plain").sites


def test_rows_are_repeated_in_turn_or_left_out():
    inputs = {"x": X, "n": 3, "y": torch.tensor(5)}
    assert with_batch(inputs, size=3)["x"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]
    assert with_batch(inputs, size=1)["x"].tolist() == [[0, 1, 2]]
    assert with_batch(inputs, at_least=2) is inputs
    assert with_batch((X, 2), size=1)[1] == 2


def test_calls_take_both_forms():
    assert torch.equal(call(Options(), (X, 3.0)), call(Options(), {"x": X, "scale": 3.0}))

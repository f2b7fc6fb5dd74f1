"""Output quality: for any model, how far its outputs move."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from surgery.models.data import open_data
from surgery.models.loaded import LoadedModel
from surgery.verify.outputs import first_tensor, tensors_of
from surgery.verify.quality import OutputQuality, quality


class Linear(nn.Module):
    def __init__(self, gain=1.0):
        super().__init__()
        self.weight = nn.Parameter(gain * torch.eye(4))

    def forward(self, vectors, token):
        return {"out": vectors @ self.weight, "token": token}


@pytest.fixture
def model():
    example = {"vectors": torch.zeros(2, 4), "token": torch.tensor([3, 5])}
    return LoadedModel("tests:linear", Linear(), example)


def test_gain_is_relative_error_and_keeps_the_cosine(model):
    test = quality(model, open_data("noise", model), samples=7, seed=0)
    assert isinstance(test, OutputQuality)
    before, after = test.measure(model.module), test.measure(Linear(gain=1.25))
    figures = test.compare(before, after)
    assert figures["output error"] == pytest.approx(0.25, abs=1e-6)
    assert figures["output cosine"] == pytest.approx(1.0, abs=1e-9)
    assert test.compare(before, before) == {"output error": 0.0, "output cosine": 1.0}
    assert test.description == "noise: outputs on 64 inputs"


def test_opposite_outputs_have_cosine_minus_one(model):
    test = OutputQuality(model, open_data("noise", model))
    figures = test.compare(test.measure(model.module), test.measure(Linear(gain=-1.0)))
    assert figures["output cosine"] == pytest.approx(-1.0, abs=1e-9)
    assert figures["output error"] == pytest.approx(2.0, abs=1e-6)


def test_batches_change_nothing_and_are_counted(model):
    seen = []
    data = open_data("noise", model, samples=10)
    whole, test = OutputQuality(model, data), OutputQuality(model, data, batch=4)
    measured = test.measure(Linear(gain=1.5), progress=lambda *counts: seen.append(counts))
    assert measured.paired == pytest.approx(whole.measure(Linear(gain=1.5)).paired, abs=1e-12)
    assert seen == [(4, 10), (8, 10), (10, 10)]


@dataclass
class Output:
    sample: torch.Tensor
    extra: tuple = ()


ONE = torch.ones(1)


@pytest.mark.parametrize(
    ("output", "count"),
    [(ONE, 1), ((ONE, [ONE, None]), 2), ({"a": ONE, "b": {"c": ONE}}, 2), (Output(ONE, (ONE,)), 2), ("text", 0)],
)
def test_tensors_are_found_in_any_container(output, count):
    assert len(tensors_of(output)) == count


def test_an_output_without_tensors_is_named():
    with pytest.raises(TypeError, match="no tensor but dict"):
        first_tensor({"a": None})

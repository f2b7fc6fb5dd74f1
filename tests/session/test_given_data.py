"""Rows handed over in Python: which are learned from, which are measured, and what by."""

import pytest
import torch

import surgery
from surgery.diagnostics import SurgeryError
from surgery.models import LoadedModel
from surgery.session.given import given_data

transformers = pytest.importorskip("transformers")
GATES = "sparsify attention 60% via gates steps=2 batch=4 tolerance=20%"
QUICK = {"timing": False, "controls": False}


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 24}
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=40)
    return transformers.LlamaForCausalLM(config).eval()


def ids(rows: int = 16) -> torch.Tensor:
    return torch.randint(0, 40, (rows, 12), generator=torch.Generator().manual_seed(0))


def example() -> dict:
    return {"input_ids": ids(2), "use_cache": False}


def opened(model, calibration=None, **rows):
    return given_data(rows, LoadedModel("it", model, {"input_ids": ids(2)}), calibration)


def test_rows_are_parted_and_none_is_both(llama):
    data = opened(llama, "25%", input_ids=ids())
    assert len(data.inputs["input_ids"]) == len(data.targets) == 12
    assert len(data.calibration["input_ids"]) == len(data.calibration_targets) == 4
    both = torch.cat([data.inputs["input_ids"], data.calibration["input_ids"]])
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, ids().tolist()))
    assert torch.equal(data.targets[:, :-1], data.inputs["input_ids"][:, 1:]) and (data.targets[:, -1] == -100).all()
    assert opened(llama, input_ids=ids()).calibration is None


def test_padding_is_not_scored(llama):
    real = torch.ones(2, 12, dtype=torch.int64)
    real[0, :4] = 0
    model = LoadedModel("it", llama, {"input_ids": ids(2), "attention_mask": real})
    targets = given_data({"input_ids": ids(2), "attention_mask": real}, model).targets
    assert (targets[0, :4] == -100).all() and targets[0, 4] == ids(2)[0, 5] and (targets[1, :-1] != -100).all()


@pytest.mark.parametrize(
    ("targets", "task"),
    [
        (torch.cat([ids()[:, 1:], torch.full((16, 1), -100)], 1), "causal-lm"),
        (ids(), "masked-lm"),
        (torch.arange(16) % 3, "classification"),
    ],
    ids=str,
)
def test_targets_say_what_they_are_for(targets, task):
    data = opened(torch.nn.Linear(2, 2), input_ids=ids(), targets=targets)
    assert data.task == task and torch.equal(data.targets, targets) and "targets" not in data.inputs


def test_a_plain_module_without_targets_has_no_task():
    data = opened(torch.nn.Linear(2, 2), input_ids=ids())
    assert data.task is None and data.targets is None


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"targets": torch.zeros(16, 12)}, "targets is torch.float32 [16, 12], not torch.int64"),
        ({"targets": torch.zeros(3, 12, dtype=torch.int64)}, "targets has 3 rows"),
    ],
)
def test_targets_that_do_not_fit_are_refused(given, fault, llama):
    with pytest.raises(SurgeryError, match="S212") as caught:
        opened(llama, input_ids=ids(), **given)
    assert fault in str(caught.value)


@pytest.mark.parametrize("calibration", [2.5, "auto", "200%", 16, 1.0])
def test_a_share_that_leaves_nothing_or_is_none_is_refused(calibration, llama):
    with pytest.raises(SurgeryError, match="calibration=|200%"):
        opened(llama, calibration, input_ids=ids())


def test_what_learns_says_how_rows_are_given_to_it(llama):
    with pytest.raises(SurgeryError, match="S323.*\n.*\n.*pass calibration=0.5"):
        surgery.compile(llama, GATES, example_inputs=example(), data={"input_ids": ids()}, **QUICK)
    result = surgery.compile(llama, GATES, example_inputs=example(), data={"input_ids": ids()}, calibration=0.5, **QUICK)
    assert [row["metric"] for row in result.report["quality"]][:2] == ["loss", "perplexity"]
    assert {row["data"] for row in result.report["quality"]} == {"given: 8 given inputs, 8 more to calibrate on"}


def test_it_overrides_what_a_spec_says(llama, tmp_path):
    from safetensors.torch import save_file

    save_file({"input_ids": ids()}, tmp_path / "rows.safetensors")
    spec = f'data tensors:"{tmp_path}/rows.safetensors" calibration=25%\n{GATES}'
    result = surgery.compile(llama, spec, example_inputs=example(), calibration=12, **QUICK)
    assert result.report["data"]["calibration"]["rows"] == 12

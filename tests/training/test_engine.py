"""The engine on a small reader of real text: what it changes, what it leaves, and when it stops."""

from dataclasses import replace

import pytest
import taught
import torch
from torch import nn

from surgery.diagnostics import SurgeryError
from surgery.training.engine import EVALUATION, penalized, train
from surgery.training.examples import Examples
from surgery.training.objective import Constrained, Recovery
from surgery.training.settings import Settings

SHORT = Settings(steps=12, rate=3e-3, batch=8, evaluate_every=4)


@pytest.fixture(scope="module")
def graph():
    return taught.graph()


@pytest.fixture(scope="module")
def data(graph):
    return taught.calibration(graph)


def test_the_loss_falls_and_the_model_given_is_untouched(graph, data):
    before = taught.values(graph)
    trained = train(graph, data, replace(SHORT, steps=60), Recovery())
    assert trained.finished and trained.best.loss < 0.9 * trained.start.loss and trained.best_step > 0
    assert taught.same(before, taught.values(graph))
    assert [row["step"] for row in trained.history] == list(range(1, 61))
    assert all(parameter.grad is None for parameter in graph.parameters())


def test_tied_weights_stay_tied_and_buffers_are_fixed(graph, data):
    trained = train(graph, data, SHORT, Recovery())
    names = {name for name in trained.weights if trained.weights[name].shape == (taught.BYTES, 16)}
    assert names == {"table.weight"} and "scale" not in trained.weights
    read = [node.target for node in graph.graph.nodes if node.op == "get_attr"]
    assert "head.weight" not in read, "capture names a shared tensor once"


def test_rows_to_judge_by_are_never_trained_on_and_every_row_comes_before_any_comes_again(data):
    examples = Examples(data, replace(SHORT, batch=9))
    seen = torch.cat([examples.rows(step) for step in range(8)])
    assert not set(seen.tolist()) & set(examples.judged.tolist())
    assert seen[:71].unique().numel() == 71 == len(examples.training) and len(examples.judged) == 9
    again = Examples(data, replace(SHORT, batch=9))
    assert torch.equal(again.rows(5), examples.rows(5))
    assert not torch.equal(Examples(data, replace(SHORT, batch=9, seed=1)).rows(5), examples.rows(5))
    assert torch.equal(Examples(data, replace(SHORT, seed=1, batch=9)).judged, examples.judged)


@pytest.mark.parametrize("task", ["causal-lm", "embedding"])
@pytest.mark.parametrize("padded", [False, True])
def test_accumulating_equals_a_larger_batch(padded, task):
    """With padding too, where parts of a step hold different numbers of real tokens; and learning from a teacher."""
    model = Masked()
    graph = taught.capture(model.eval(), {"input_ids": taught.rows(2), "attention_mask": torch.ones(2, 24).long()})
    mask = torch.ones(80, taught.LENGTH).long()
    if padded:
        mask = (torch.arange(taught.LENGTH) < torch.arange(80)[:, None] % 20 + 3).long()
    data = replace(taught.calibration(graph, attention_mask=mask), task=task)
    plan = replace(SHORT, distill=1.0, data=1.0 if task == "causal-lm" else 0.0)
    teacher = lambda **inputs: graph(**inputs) * 1.1 + 0.1  # noqa: E731
    # float64: Adam turns the rounding of a gradient that is nearly zero into a step of full size.
    whole, parts = (train(graph, data, replace(plan, accumulate=n), Recovery(), teacher=teacher) for n in (1, 4))
    assert [row["loss"] for row in parts.history] == pytest.approx([row["loss"] for row in whole.history], rel=1e-6)
    for name, value in whole.weights.items():
        torch.testing.assert_close(parts.weights[name], value, rtol=1e-6, atol=1e-6)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = taught.Reader().double()

    def forward(self, input_ids, attention_mask):
        return self.inner(input_ids) + 0 * attention_mask[..., None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_are_trained_as_float32_copies(dtype):
    """A rate so low that no single step moves a 16-bit weight: only copies of 32 bits add them up."""
    graph = taught.graph(dtype=dtype)
    data = taught.calibration(graph)
    slow = replace(SHORT, steps=40, rate=2e-5, decay="none", warmup=0)
    trained = train(graph, data, slow, Recovery())
    assert {value.dtype for value in trained.weights.values()} == {dtype}
    moved = trained.weights["up.weight"] != graph.get_parameter("up.weight")
    assert trained.best.loss < trained.start.loss and moved.float().mean() > 0.1


def test_autocast_computes_in_sixteen_bits_and_keeps_float32_weights(graph, data):
    trained = train(graph, data, replace(SHORT, precision="bfloat16", steps=40), Recovery())
    exact = train(graph, data, replace(SHORT, steps=40), Recovery())
    assert {value.dtype for value in trained.weights.values()} == {torch.float32}
    assert trained.best.loss == pytest.approx(exact.best.loss, rel=0.02) and trained.best.loss != exact.best.loss


def test_a_number_that_is_not_finite_stops_training_with_the_best_state_kept(graph, data):
    def spoil(module, step, micro):
        if step == 9 and micro != EVALUATION:
            module.scale.fill_(float("nan"))

    trained = train(graph, data, SHORT, Recovery(), before_step=spoil)
    assert trained.state.startswith("stopped: a loss of nan") and trained.state.endswith("at step 9")
    assert len(trained.history) == 9 and trained.best_step == 8
    assert all(torch.isfinite(value).all() for value in trained.weights.values())
    assert "step 9 of 12" in trained.notes[-1] and "S811" in trained.notes[-1]
    assert float(graph.get_buffer("scale")) == 0.5, "the copy's buffers are its own"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"steps": 0}, "steps=0"),
        ({"rate": 0.0}, "rate=0"),
        ({"rate": float("nan")}, "rate=nan"),
        ({"precision": "int8"}, "precision=int8"),
        ({"data": 0.0}, "nothing is left to learn from"),
        ({"batch": 2, "accumulate": 4}, "accumulate=4"),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused(settings, told):
    with pytest.raises(SurgeryError, match=told) as caught:
        Settings(**{"steps": 5} | settings)
    assert caught.value.diagnostics[0].code == "S814"


def test_too_little_data_and_a_missing_teacher_are_refused(graph):
    with pytest.raises(SurgeryError, match="1 row"):
        train(graph, taught.calibration(graph, 1), SHORT, Recovery())
    with pytest.raises(SurgeryError, match="no teacher"):
        train(graph, taught.calibration(graph), replace(SHORT, distill=1.0), Recovery())


def test_the_rate_rises_and_falls():
    rates = [Settings(steps=100, rate=1.0).rate_at(step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and rates[5] == 1.0
    assert all(now <= before for before, now in zip(rates[5:], rates[6:], strict=False)) and rates[-1] < 0.02
    assert [Settings(steps=4, rate=1.0, warmup=0, decay="none").rate_at(step) for step in range(4)] == [1.0] * 4


def test_distillation_alone_recovers_the_teacher(graph, data):
    damaged = taught.graph()
    with torch.no_grad():
        damaged.get_parameter("down.weight").mul_(0.0)
        damaged.get_parameter("mix.weight").mul_(0.5)
    trained = train(damaged, data, replace(SHORT, steps=60, data=0.0, distill=1.0), Recovery(), teacher=graph)
    assert trained.best.loss < 0.3 * trained.start.loss
    same = train(graph, data, replace(SHORT, steps=1, data=0.0, distill=1.0), Recovery(), teacher=graph)
    assert same.start.loss == pytest.approx(0, abs=1e-6) and same.best_step == 0


class Gated(nn.Module):
    """Its penalty is how far the hidden units are open; b closes them."""

    def __init__(self):
        super().__init__()
        self.inner, self.gates = taught.Reader(), nn.Parameter(torch.full((32,), 3.0))
        self.inner.down.register_forward_pre_hook(lambda module, given: given[0] * torch.sigmoid(self.gates))

    def forward(self, input_ids):
        return self.inner(input_ids), torch.sigmoid(self.gates).mean()


def test_a_constraint_is_respected_while_the_penalty_falls(data):
    graph = taught.graph(Gated)
    start = train(graph, data, replace(SHORT, steps=1), Recovery(), forward=penalized).start
    objective = Constrained(target=start.loss)
    scales = {"gates": 30.0}
    settings = replace(SHORT, steps=80, decay="none")
    trained = train(graph, data, settings, objective, forward=penalized, scales=scales)
    assert trained.best.feasible and trained.best.loss <= start.loss and trained.best.penalty < 0.5 * start.penalty
    assert all(1e-2 <= row["multiplier"] <= 1e2 for row in trained.history)
    judged = [row for row in trained.history if "held_out_loss" in row and row["feasible"]]
    assert trained.best.penalty == min(row["held_out_penalty"] for row in judged)

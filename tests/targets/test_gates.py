"""`sparsify attention … via gates` from spec to bundle: what it promises, proves, refuses, counts and writes."""

import argparse
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import surgery
from surgery.anatomy.graphs import attribute
from surgery.anatomy.sites.attention import find_attention
from surgery.check import check
from surgery.diagnostics import RefusalError, SpecError, SurgeryError, UnprovenError
from surgery.generation import generate
from surgery.models.data import Data
from surgery.passes.runner import run_passes
from surgery.session.prepare import prepare
from surgery.session.rewrite import context_of
from surgery.targets import gate_lowering
from surgery.targets.context import silent
from surgery.targets.edge_tally import biases, tally
from surgery.targets.gate_training import Aimed, BesideDense, train_gates
from surgery.targets.learned import Learned
from surgery.training.objective import Evaluated
from surgery.verify.outputs import tensors_of

LENGTH, WORDS = 16, 128
SPEC = "sparsify attention {share}via gates steps={steps} tolerance={tolerance} batch=16 lr=3e-3 bias=1 follow=data {more}"


class Reader(nn.Module):
    """A decoder of two layers, the second with shared keys; attention is one causal call."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.table, self.places = nn.Embedding(WORDS, width), nn.Embedding(64, width)
        self.layers = nn.ModuleList(Layer(width, kv_heads) for kv_heads in (4, 2))
        self.head = nn.Linear(width, WORDS)

    def forward(self, input_ids):
        x = self.table(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class Layer(nn.Module):
    def __init__(self, width: int, kv_heads: int):
        super().__init__()
        self.kv_heads = kv_heads
        self.norm, self.q = nn.LayerNorm(width), nn.Linear(width, width)
        self.kv, self.o = nn.Linear(width, width // 4 * kv_heads * 2), nn.Linear(width, width)

    def forward(self, x):
        batch, length, width = x.shape
        y = self.norm(x)
        q = self.q(y).view(batch, length, 4, width // 4).transpose(1, 2)
        k, v = self.kv(y).view(batch, length, 2, self.kv_heads, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return x + self.o(out.transpose(1, 2).reshape(batch, length, width))


def rows(count: int, seed: int) -> torch.Tensor:
    """Windows of the standard library's own words."""
    text = torch.tensor([byte for byte in Path(argparse.__file__).read_bytes() if byte < WORDS])
    starts = torch.randint(len(text) - LENGTH, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([text[start : start + LENGTH] for start in starts.tolist()])


def data(count: int = 96) -> Data:
    held_out, training = rows(count, 1), rows(count, 2)
    targets = torch.cat([held_out[:, 1:], torch.full((count, 1), -100)], 1)
    return Data("given", "text", "0", {"input_ids": held_out}, task="causal-lm", targets=targets,
                calibration={"input_ids": training})  # fmt: skip


GIVEN = {"example_inputs": {"input_ids": rows(2, 3)}, "data": data(), "timing": False, "controls": False}


@cache
def reader() -> Reader:
    torch.manual_seed(0)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(60):
        batch = rows(32, 100 + step)
        loss = cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def operated(share: str = "", steps: int = 40, tolerance: str = "10%", more: str = "", model=None, **options):
    spec = SPEC.format(share=share, steps=steps, tolerance=tolerance, more=more)
    return surgery.compile(model or reader(), spec, **(GIVEN | options))


@cache
def plainly():
    return operated(controls=True)


def finding(result, kind: str) -> dict:
    return next(found for found in result.report["findings"] if found["kind"] == kind)


@pytest.mark.parametrize("mass", [0.5, 0.95])
def test_first_biases_keep_that_much_of_each_heads_attention(mass):
    """And no edge more than that takes: with the last of them off it is less."""
    prepared = prepare("sparsify attention via gates", reader(), example_inputs=GIVEN["example_inputs"])
    work, calibration = prepared.works[0], context_of(prepared, data(), silent).calibration
    graph_module = prepared.anatomy.graph_module
    whole = work._written_out(graph_module, {gate.tensor: torch.full((4,), 50.0) for gate in work._gates(graph_module, {})})
    found = biases(whole, calibration, mass)
    assert set(found) == {"layers.0", "layers.1"}
    for shift, holds in ((1e-5, True), (-1e-5, False)):
        moved = {f"{path}.gate_bias": values + shift for path, values in found.items()}
        first = tally(work._written_out(graph_module, moved), calibration)["layers.0"]  # the next one reads what it does
        assert ((first.mass / first.queries >= mass - 1e-9) == holds).all()


def test_following_the_dense_model_allows_as_much_divergence_as_the_loss_may_rise():
    """The divergence of the dense model from itself is 0, and few steps at this tolerance stay within it."""
    spec = SPEC.format(share="", steps=40, tolerance="10%", more="").replace("follow=data", "follow=dense")
    result = surgery.compile(reader(), spec, **(GIVEN | {"controls": False}))
    told, beside = (each.report["actions"][0]["choice"] for each in (result, plainly()))
    assert (told["loss of"], beside["loss of"]) == ("the dense model's outputs", "the data")
    assert told["dense loss"] == 0 and told["target"] == pytest.approx(beside["dense loss"] * 0.1)
    assert told["feasible"] and 0 < told["loss"] <= told["target"] and 0.1 < told["achieved"] < 1


def test_it_keeps_its_promise_and_says_what_it_did():
    result = plainly()
    told, notes = result.report["actions"][0]["choice"], result.report["actions"][0]["notes"]
    assert told["feasible"] and told["loss"] <= told["target"] == pytest.approx(told["dense loss"] * 1.1)
    assert 0.1 < told["achieved"] < 1 and any("achieved" in note for note in notes)
    assert all(row["holds"] and row["what"] == "masks written out == lowered" for row in result.report["parity"])
    edges = finding(result, "edges")
    assert edges["achieved"] == told["achieved"] and [site["heads"] for site in edges["sites"]] == [4, 4]
    for site in edges["sites"]:
        assert all(0 <= share <= 1 for share in site["kept"] + site["mass"])
        assert len(site["map"]["dense"]) == 4 and len(site["map"]["kept"][0]) == site["map"]["size"] == LENGTH
    training = finding(result, "training")
    assert training["best_step"] == told["best_step"] and sum("loss" in row for row in training["history"]) == 40
    assert {len(site["dense"]) for site in finding(result, "induction")["sites"]} == {4}


def test_edges_can_be_required():
    spec = "sparsify attention 50% via gates by random\nrequire edges {}"
    rows_ = surgery.compile(reader(), spec.format("<= 60%"), **GIVEN).report["requirements"]
    assert rows_[0]["holds"] and rows_[0]["before"] == 1 and 0.4 < rows_[0]["measured"] < 0.6
    with pytest.raises(UnprovenError, match="edges <= 10%"):
        surgery.compile(reader(), spec.format("<= 10%"), **GIVEN)
    with pytest.raises(SurgeryError, match="not measured"):
        surgery.compile(reader(), "prune 25% of attention heads\nrequire edges <= 10%", **GIVEN)


def test_as_many_edges_at_random_are_worse():
    controls = {row["name"]: row["metrics"]["loss"] for row in plainly().report["controls"]}
    after = next(row["after"] for row in plainly().report["quality"] if row["metric"] == "loss")
    assert controls["random edges, as many per head"] > after
    assert len(controls) == 2


def test_it_saves_loads_and_writes_with_a_cache_as_without(tmp_path):
    result = plainly()
    result.save(tmp_path / "out")
    loaded = surgery.load(tmp_path / "out")
    tokens = rows(3, 5)
    ours, theirs = (tensors_of(module(input_ids=tokens))[0] for module in (result.module, loaded))
    assert torch.equal(ours, theirs)
    texts = [loaded.generate(tokens[:, :6], max_new_tokens=8, eos_token_id=[], use_cache=use) for use in (True, False)]
    assert torch.equal(*texts)


def test_lowered_sites_are_proven_and_write_with_a_cache_too(monkeypatch):
    monkeypatch.setattr(gate_lowering, "_measured", lambda form, operands: "surgery::gated_attention: as the test asks")
    result = operated(steps=10)
    called = [str(node.target) for node in result.module.graph.nodes]
    assert called.count("surgery.gated_attention.default") == 2
    assert [site.describe() for site in find_attention(result.module)] == [
        "4 heads × 8, causal", "4 heads, 2 KV heads × 8, causal",
    ]  # fmt: skip
    assert all(row["holds"] for row in result.report["parity"])
    tokens = rows(2, 5)[:, :6]
    texts = [generate(result.module, tokens, max_new_tokens=6, eos_token_id=[], use_cache=use) for use in (True, False)]
    assert torch.equal(*texts)


@pytest.mark.parametrize("more", ("normalize=kept accumulate=2", "distill=1 lora=2", "precision=bfloat16"))
def test_options_hold_what_they_say(more):
    result = operated(steps=6, tolerance="50%", more=more)
    assert all(row["holds"] for row in result.report["parity"])
    assert finding(result, "edges")["normalize"] == ("kept" if "kept" in more else "all")


def test_a_share_is_an_aim_not_a_floor():
    told = operated("30% ", steps=40, tolerance="100%").report["actions"][0]["choice"]
    assert told["requested"] == 0.3 and 0.3 <= told["achieved"] < 0.6


def test_a_bfloat16_model_keeps_its_dtype():
    result = operated(steps=4, model=Reader().to(torch.bfloat16).eval(), tolerance="50%")
    weights = {value.dtype for name, value in result.module.state_dict().items() if "gate_bias" not in name}
    assert weights == {torch.bfloat16} and all(row["holds"] for row in result.report["parity"])


@pytest.mark.parametrize("by", ("random", "magnitude"))
def test_the_controls_can_be_asked_for_themselves(by):
    result = surgery.compile(reader(), f"sparsify attention 50% by {by}", **GIVEN)
    assert all(row["holds"] for row in result.report["parity"])
    assert finding(result, "edges")["achieved"] == pytest.approx(0.5, abs=0.05)


def test_magnitude_is_one_threshold_for_all_heads():
    """As many edges in all as are asked for, but for what the second layer sees of the first one's; of each head its own."""
    result = surgery.compile(reader(), "sparsify attention 70% by magnitude", **GIVEN)
    numbers = torch.cat([value for name, value in result.module.state_dict().items() if name.endswith("gate_threshold")])
    assert len(numbers) == 8 and len(numbers.unique()) == 1
    edges = finding(result, "edges")
    kept = [share for site in edges["sites"] for share in site["kept"]]
    assert 1 - sum(kept) / 8 == pytest.approx(0.7, abs=5e-3) and max(kept) - min(kept) > 0.02


def test_dead_heads_are_removed_with_all_that_makes_them():
    """One head of the first layer alone; in the second its partner, which shares its keys and values, lives."""
    prepared = prepare("sparsify attention via gates dead=remove", reader(), example_inputs=GIVEN["example_inputs"])
    (work,), graph_module = prepared.works, prepared.anatomy.graph_module
    told = {"lowered": {}, "dead": {"layers.0": [2], "layers.1": [0, 2, 3]}}
    learned = Learned({f"layers.{layer}.gate_bias": torch.zeros(4) for layer in (0, 1)}, told)
    ours, theirs = (
        run_passes(graph_module, getattr(work, which)(graph_module, learned, None)) for which in ("passes", "reference")
    )
    tokens = rows(4, 9)
    assert attribute(ours, "layers.0.q.weight").shape == (24, 32) and attribute(ours, "layers.1.kv.weight").shape == (16, 32)
    assert attribute(ours, "layers.0.gate_bias").shape == (3,) and attribute(ours, "layers.1.gate_bias").shape == (2,)
    assert torch.allclose(ours(input_ids=tokens), theirs(input_ids=tokens), atol=1e-5)
    told["dead"] = {"layers.1": [0]}
    found = work._removal(graph_module, told["dead"])
    assert not found.cuts and "share keys and values" in found.notes[0]


def test_interrupted_training_goes_on_where_it_was(tmp_path):
    prepared = prepare(SPEC.format(share="", steps=12, tolerance="10%", more=""), reader(), example_inputs=GIVEN["example_inputs"])
    (work,), graph_module = prepared.works, prepared.anatomy.graph_module
    gates = work._gates(graph_module, {})

    def train(checkpoints=None, progress=silent):
        context = replace(context_of(prepared, data(), progress), checkpoints=checkpoints)
        return train_gates(graph_module, gates, work.options, context, "clause", "place").trained

    def press(stage, done, total):
        if done == 7:
            raise KeyboardInterrupt

    whole = train()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, press)
    again = train(tmp_path)
    assert all(torch.equal(value, again.weights[name]) for name, value in whole.weights.items())


def test_what_cannot_be_gated_is_refused():
    with pytest.raises(RefusalError, match="none to train on") as caught:
        surgery.compile(reader(), "sparsify attention via gates", **(GIVEN | {"data": {"input_ids": rows(8, 1)}}))
    assert caught.value.diagnostics[0].code == "S323"
    with pytest.raises(SurgeryError) as caught:
        surgery.plan(reader(), "sparsify attention 50% via gates by mass", example_inputs=GIVEN["example_inputs"])
    assert caught.value.diagnostics[0].code == "S318"


def test_the_best_state_is_the_one_asked_for():
    aimed = Aimed(1.0, aim=0.1)
    few, fewer = Evaluated(1, 0.9, 0.09), Evaluated(2, 0.95, 0.01)
    assert not aimed.better(fewer, few) and aimed.better(few, fewer)
    assert Aimed(1.0).better(fewer, few) and not aimed.better(Evaluated(3, 1.1, 0.0, False), few)


def test_rows_known_by_heart_do_not_pay_for_sparsity():
    objective = Aimed(1.0)
    objective.update(0.5, 0.1)
    assert objective.violation < 0
    assert not objective.feasible(1.4)
    for _ in range(30):
        objective.update(0.5, 0.1)
    assert objective.violation > 0 and objective.multiplier > 1
    resumed = Aimed(1.0)
    resumed.load(objective.state())
    assert resumed.state() == objective.state()


def test_a_batchs_loss_is_told_beside_the_dense_models():
    graph_module = plainly().module
    given = {"input_ids": rows(8, 9)}
    beside = BesideDense(given, task="causal-lm", teacher=graph_module, dense=0.7)
    outputs = graph_module(**given)
    assert float(beside.loss(outputs, given)) == pytest.approx(0.7, abs=1e-5)
    assert attribute(graph_module, "layers.0.gate_bias").shape == (4,)


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("via gates lr=0", "`lr=0` changes nothing"),
        ("via gates batch=4 accumulate=8", "`accumulate=8` passes cannot share out `batch=4` rows"),
        ("via topk", "`via topk` needs to know how much goes"),
    ],
)
def test_contradictions_are_told_before_any_model(said, fault):
    with pytest.raises(SpecError) as caught:
        check(f"sparsify attention {said}")
    (one,) = caught.value.diagnostics
    assert one.code == "S122" and fault in one.message and one.span.text.startswith("sparsify") and one.help

"""`heal` behind a cut, from spec to bundle, on models that transformers made and on text that people wrote."""

import argparse
import re
from collections import Counter
from pathlib import Path

import pytest
import saved
import torch
from safetensors.torch import save_file

import surgery
from surgery.diagnostics import RefusalError, SpecError, SurgeryError
from surgery.models import open_model
from surgery.models.data import open_data
from surgery.session import prepare
from surgery.session.operate import operate
from surgery.session.rewrite import choose, context_of, rewrite
from surgery.targets.calibration import Calibration
from surgery.verify.denoising import denoising_loss

pytest.importorskip("transformers")
CUT = "prune 50% of mlp channels by magnitude compensate=none"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """With a corpus: a real module's words, the 59 most frequent ones by rank and all others as one."""
    root = tmp_path_factory.mktemp("heal")
    lines = [re.findall(r"[A-Za-z_]+", line) for line in Path(argparse.__file__).read_text().splitlines()]
    common = [word for word, _ in Counter(sum(lines, [])).most_common(len(saved.WORDS) - 1)]
    named = dict(zip(common, saved.WORDS, strict=False))
    text = "\n".join(" ".join(named.get(word, saved.WORDS[-1]) for word in line) for line in lines if line)
    (root / "corpus.txt").write_text(text)
    return root


class Clinic:
    """Models captured once, however many specs are carried out on them."""

    def __init__(self, root):
        self.root, self.open = root, {}

    def spec(self, kind, *clauses, data='text:"{}/corpus.txt" length=16 samples=120 calibration=80'):
        return "\n".join([f"data {data.format(self.root)}", *clauses])

    def prepared(self, kind, *clauses, **given):
        if kind not in self.open:
            model = open_model(f"hf:{saved.save(kind, self.root / kind)}")
            self.open[kind] = model, surgery.inspect(model.module, model.example_inputs)
        model, anatomy = self.open[kind]
        return prepare(self.spec(kind, *clauses, **given), model, anatomy=anatomy)

    def operate(self, kind, *clauses, checkpoints=None, **given):
        return operate(self.prepared(kind, *clauses, **given), timing=False, controls=False, checkpoints=checkpoints)


@pytest.fixture(scope="module")
def clinic(root):
    return Clinic(root)


def metric(result, name):
    return next(row["after"] for row in result.report["quality"] if row["metric"] == name)


@pytest.mark.parametrize(
    ("kind", "how", "name"),
    [
        ("gpt2", "by data", "loss"),
        ("gpt2", "lora=4", "loss"),
        ("llama", "by both precision=bfloat16", "loss"),
        ("llama", "lora=4 by distillation", "logit kl"),
        ("bert-masked", "accumulate=2", "loss"),
        ("bert-masked", "by distillation", "logit kl"),
    ],
)
def test_a_healed_model_is_nearer_to_what_was_cut(kind, how, name, clinic):
    """Measured on held-out rows, which training never saw."""
    before = metric(clinic.operate(kind, CUT), name)
    healed = clinic.operate(kind, CUT, f"heal {how} steps=30 lr=5e-3")
    assert metric(healed, name) < 0.97 * before
    (finding,) = [one for one in healed.report["findings"] if one["kind"] == "training"]
    assert finding["state"] == "finished" and finding["best_step"] > 0
    assert len(finding["history"]) == 31 and "seconds" not in finding["history"][1]
    assert {row["what"] for row in healed.report["parity"]} == {"masked == compacted"}


def test_a_healed_model_is_saved_and_loads_with_the_same_values_tied_as_they_were(clinic, tmp_path):
    healed = clinic.operate("gpt2", CUT, "heal steps=6 lr=5e-3")
    again = surgery.load(healed.save(tmp_path / "out"))
    given = healed.example_inputs
    with torch.no_grad():
        assert torch.equal(again(**given).logits, healed.module(**given).logits)
    was = clinic.open["gpt2"][0].module.state_dict()["transformer.wte.weight"]
    stored = [tensor for name, tensor in healed.graph_module.state_dict().items() if tensor.shape == was.shape]
    assert len(stored) == 1 and not torch.equal(stored[0], was)


def test_an_encoder_without_a_loss_and_images_learn_from_the_original(clinic):
    embedding = clinic.operate("bert", CUT, "heal steps=6 lr=5e-3")
    assert embedding.report["actions"][-1]["choice"]["learned_from"] == "distillation"
    chance = torch.Generator().manual_seed(0)
    save_file({"pixel_values": torch.randn(64, 3, 8, 8, generator=chance)}, clinic.root / "images.safetensors")
    data = 'tensors:"{}/images.safetensors" calibration=48'
    cut, healed = (clinic.operate("vit", CUT, *more, data=data) for more in ((), ("heal steps=30 lr=5e-3",)))
    assert metric(healed, "output error") < 0.8 * metric(cut, "output error")


def test_a_recovery_that_only_worsens_keeps_the_beginning_and_says_so(clinic):
    cut = clinic.operate("gpt2", CUT)
    worse = clinic.operate("gpt2", CUT, "heal steps=3 lr=100")
    assert metric(worse, "loss") == metric(cut, "loss")
    assert any("no state was better than the beginning" in note for note in worse.report["actions"][-1]["notes"])


def test_what_cannot_be_healed_is_refused_with_its_cure(clinic):
    with pytest.raises(RefusalError, match="needs calibration data") as caught:
        clinic.operate("vit", CUT, "heal", data="noise samples=8")
    assert caught.value.diagnostics[0].code == "S323" and caught.value.diagnostics[0].span
    with pytest.raises(RefusalError, match="inputs alone"):
        clinic.operate("bert", CUT, "heal by data")
    for wrong in ("steps=0", "lr=0", "accumulate=32 batch=16", "precision=int8"):
        with pytest.raises(SpecError):
            surgery.check(f"heal {wrong}")


def test_a_plan_names_it_and_its_checkpoint_is_its_own(clinic, tmp_path):
    made = clinic.prepared("gpt2", CUT, "heal steps=20 lr=5e-3").plan
    assert [action.operation for action in made.actions][-1] == "heal" and made.actions[-1].parameters == 0
    first = clinic.operate("gpt2", "heal steps=6", checkpoints=tmp_path)
    assert [path.name for path in (tmp_path / "heal-2-1").iterdir()] == ["step-000006"]
    with pytest.raises(SurgeryError) as caught:
        clinic.operate("gpt2", "heal steps=7", checkpoints=tmp_path)
    assert caught.value.diagnostics[0].code == "S812" and "steps: 6 there, 7 here" in caught.value.diagnostics[0].notes
    again = clinic.operate("gpt2", "heal steps=6", checkpoints=tmp_path)
    assert first.report["quality"] == again.report["quality"]


@pytest.mark.parametrize("ids", ["new", "old"])
@pytest.mark.parametrize("kind", ["gpt2", "bert-masked"])
def test_a_cut_vocabulary_is_healed_on_the_tokens_that_stay(kind, ids, clinic):
    cut = f"prune 25% of token embeddings ids={ids}"
    before, healed = clinic.operate(kind, cut), clinic.operate(kind, cut, "heal steps=20 lr=5e-3")
    assert metric(healed, "loss") < 0.97 * metric(before, "loss")
    with pytest.raises(RefusalError, match="outputs are") as caught:
        clinic.operate(kind, cut, "heal by distillation")
    assert caught.value.diagnostics[0].code == "S815"


def test_next_tokens_written_out_have_the_loss_of_the_task():
    ids, mask = torch.randint(1, 9, (6, 7)), (torch.arange(7) < torch.arange(2, 8)[:, None]).long()
    data = Calibration({"input_ids": ids, "attention_mask": mask}, task="causal-lm")
    logits = torch.randn(6, 7, 9, dtype=torch.float64)
    implied = data.loss(logits, data.inputs)
    torch.testing.assert_close(data.loss(logits, data.inputs, data.next_tokens()), implied, rtol=1e-14, atol=0)
    assert data.weight(data.inputs) == data.weight(data.inputs, data.next_tokens()) == int((mask[:, 1:]).sum())


def test_a_diffusion_model_without_calibration_data_learns_from_the_original_along_its_own_sampling_paths(monkeypatch):
    """Of the zoo's: half of its mlp channels go, and the error it is measured by is of digits it never saw."""
    monkeypatch.setattr("surgery.session.matching.TRAJECTORIES", 22)
    model = open_model("zoo:digits-dit")
    anatomy = surgery.inspect(model.module, model.example_inputs)
    digits = open_data("digits", model)
    losses = {}
    for heal in ("", "\nheal steps=12 lr=1e-3"):
        prepared = prepare("prune 50% of mlp channels by magnitude" + heal, model, anatomy=anatomy)
        choices = choose(prepared, context_of(prepared))
        module, told = rewrite(prepared, choices), choices[-1].told
        given = digits.clean[:60], digits.labels[:60]
        losses[told.get("learned_from")] = denoising_loss(module, model.diffusion, *given, seed=0, draws=2)
    assert losses["distillation"] < losses[None]

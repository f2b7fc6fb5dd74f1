"""`sparsify attention … via blocks` on models that others wrote: proven, reloaded, generating, refused."""

import os
import subprocess
import sys
from pathlib import Path

import edge_cases
import pytest
import torch
from surgery.diagnostics import RefusalError
from surgery.lowering.gate import Decision
from surgery.session import apply
from surgery.targets import edge_work

import surgery

pytest.importorskip("transformers")
ROOT = Path(surgery.__file__).resolve().parents[1]
FORMS = ("sink, window", "vertical, slash", "sink, window, vertical, slash, blocks")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("edges")


@pytest.fixture(params=["block", "dense", "edge"])
def form(request, monkeypatch):
    """As what sites run, whatever is faster here."""
    found = Decision("attention pattern", request.param, 1.0, "asked for", True, "cpu", {})
    monkeypatch.setattr(edge_work, "decide", lambda *given: found)
    return request.param



CASES = [
    ("gpt2", FORMS[2], torch.float32, "block"),
    ("llama", FORMS[2], torch.bfloat16, "edge"),
    ("mistral", FORMS[0], torch.float32, "block"),
    ("bert", FORMS[1], torch.float32, "block"),
    ("bert", FORMS[2], torch.bfloat16, "dense"),
]


@pytest.mark.parametrize("kind, keep, dtype, form", CASES, indirect=["form"])
def test_a_pattern_is_proven_reloaded_and_generates(kind, keep, dtype, form, root, tmp_path):
    path = edge_cases.spec(root, kind, f"sparsify attention 60% via blocks block=4 keep=[{keep}]", dtype=dtype)
    result = apply(path, tmp_path / "out", timing=False, controls=False)
    report, found = result.report, edge_cases.of(result.report)
    assert {row["length"] for row in report["parity"]} >= {edge_cases.LENGTH} if kind != "bert" else True
    assert all(row["holds"] for row in report["parity"]) and len(report["parity"]) >= 4
    assert found["achieved"] >= 0.6 and found["requested"] == 0.6
    for row in found["sites"]:
        assert row["lowered"].startswith(form) and len(row["kept"]) == len(row["mass"]) == row["heads"]
        assert all(0 < kept < share <= 1 for kept, share in zip(row["kept"], row["mass"], strict=True))
    assert not any("reads the bundle too" in note for note in report["notes"])
    again, inputs = surgery.load(tmp_path / "out"), prompt(kind)
    with torch.no_grad():
        ours, theirs = (first(module(**inputs)) for module in (result.module, again))
    assert torch.equal(ours, theirs)
    if kind != "bert":
        generates(again, inputs["input_ids"])
    if kind == "mistral":
        assert torch.equal(elsewhere(tmp_path, inputs), ours)


def elsewhere(folder, inputs):
    """What a fresh process computes with the bundle."""
    torch.save(inputs, folder / "inputs.pt")
    code = "import sys, torch, surgery; model = surgery.load(sys.argv[1] + '/out'); "
    code += "inputs = torch.load(sys.argv[1] + '/inputs.pt', weights_only=True); made = model(**inputs); "
    code += "made = made[0] if isinstance(made, tuple) else next(iter(made.values())); "
    code += "torch.save(made.detach(), sys.argv[1] + '/made.pt')"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return torch.load(folder / "made.pt", weights_only=True)


def prompt(kind):
    ids = torch.arange(2 * 20).reshape(2, 20) % 60 + 5
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else next(iter(outputs.values()))


def generates(model, ids):
    """Token by token it writes what the whole pass would."""
    written = model.generate(ids[:1, :6], max_new_tokens=10)
    mask = torch.ones_like(written)
    with torch.no_grad():
        logits = first(model(input_ids=written, attention_mask=mask))
    assert torch.equal(logits[:, 5:-1].argmax(-1), written[:, 6:])


def test_ways_to_spend_the_budget_are_compared_and_pictured(root, monkeypatch):
    monkeypatch.setattr(edge_work, "decide", lambda *given: Decision("", "block", 1.0, "", True, "cpu", {}))
    report = apply(edge_cases.spec(root, "gpt2", "sparsify attention 60% via blocks block=4"), timing=False).report
    tried = report["actions"][0]["choice"]["candidates"]
    assert [row["name"] for row in report["controls"]] == ["random blocks, as many"]
    assert len(tried) == 4 and sum(row["chosen"] for row in tried) == 1
    for row in edge_cases.of(report)["sites"]:
        maps = torch.tensor([row["map"]["dense"], row["map"]["kept"]])
        assert maps.shape == (2, 4, 12, 12) and maps.amin() >= 0 and maps.amax() == 255


REFUSED = {
    "S332": ("sparsify attention 95% via blocks block=16", "leave 50% to go at most"),
    "S318": ("sparsify attention 50% via blocks by magnitude", "not for `via blocks`"),
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_is_refused(code, root):
    clause, message = REFUSED[code]
    with pytest.raises(RefusalError, match=message) as caught:
        apply(edge_cases.spec(root, "gpt2", clause), timing=False)
    assert caught.value.diagnostics[0].code == code and caught.value.diagnostics[0].help


def test_without_data_sinks_and_windows_alone_can_be_chosen(root):
    model, options = Stranger().eval(), {"example_inputs": {"x": torch.randn(2, 32, 16)}, "timing": False}
    report = surgery.compile(model, "sparsify attention 60% via blocks block=4 keep=[sink, window]", **options).report
    found = edge_cases.of(report)
    assert found["rows"] == 0 and found["sites"][0]["mass"] is None and found["achieved"] >= 0.6
    assert all(row["holds"] for row in report["parity"])
    with pytest.raises(RefusalError, match="there is none to calibrate on") as caught:
        surgery.compile(model, "sparsify attention 60% via blocks block=4", **options)
    assert caught.value.diagnostics[0].code == "S323"


class Stranger(torch.nn.Module):
    """Bidirectional, and of any length."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return x + self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_images_keep_their_blocks_too(root):
    transformers = pytest.importorskip("transformers")
    name, config, settings, _ = edge_cases.KINDS["vit"]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
    clause = "sparsify attention 40% via blocks block=16 keep=[sink, window]"
    seen = {"pixel_values": torch.randn(2, 3, 32, 32)}
    report = surgery.compile(model, clause, example_inputs=seen, timing=False).report
    assert all(row["holds"] for row in report["parity"]) and edge_cases.of(report)["length"] == 65
    clause = clause.replace("16", "4")
    report = surgery.compile("zoo:digits-dit", clause, timing=False, controls=False, data="noise").report
    assert all(row["holds"] for row in report["parity"])
    assert {row["site"] for row in edge_cases.of(report)["sites"]} >= {"blocks.0.attn"}

"""`sparsify attention … via blocks` on models that others wrote: proven, reloaded, generating, refused."""

import edge_cases
import pytest
import torch
from surgery.diagnostics import RefusalError
from surgery.lowering.gate import Decision
from surgery.session import apply
from surgery.targets import block_pattern

import surgery

pytest.importorskip("transformers")
FORMS = ("sink, window", "vertical, slash", "sink, window, vertical, slash, blocks")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("edges")


@pytest.fixture(params=["block", "dense", "edge"])
def form(request, monkeypatch):
    """As what sites run, whatever is faster here."""
    found = Decision("attention pattern", request.param, 1.0, "asked for", True, "cpu", {})
    monkeypatch.setattr(block_pattern, "lowered", lambda *given: found)
    return request.param


def of(report):
    return next(found for found in report["findings"] if found["kind"] == "edges")


CASES = [
    ("gpt2", FORMS[2], torch.float32, "block"),
    ("llama", FORMS[0], torch.float32, "block"),
    ("llama", FORMS[2], torch.bfloat16, "edge"),
    ("gpt2", FORMS[1], torch.float32, "dense"),
    ("mistral", FORMS[0], torch.float32, "block"),
    ("bert", FORMS[1], torch.float32, "block"),
    ("bert", FORMS[2], torch.bfloat16, "dense"),
]


@pytest.mark.parametrize("kind, keep, dtype, form", CASES, indirect=["form"])
def test_a_pattern_is_proven_reloaded_and_generates(kind, keep, dtype, form, root, tmp_path):
    path = edge_cases.spec(root, kind, f"sparsify attention 60% via blocks block=4 keep=[{keep}]", dtype=dtype)
    result = apply(path, tmp_path / "out", timing=False, controls=False)
    report, found = result.report, of(result.report)
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


def prompt(kind):
    ids = torch.arange(2 * 20).reshape(2, 20) % 60 + 5
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else next(iter(outputs.values())) if isinstance(outputs, dict) else outputs


def generates(model, ids):
    """Token by token it writes what the whole pass would."""
    written = model.generate(ids[:1, :6], max_new_tokens=10)
    mask = torch.ones_like(written)
    with torch.no_grad():
        logits = first(model(input_ids=written, attention_mask=mask))
    assert torch.equal(logits[:, 5:-1].argmax(-1), written[:, 6:])

"""`sparsify attention to edges "…"`: a pattern from a file, proven, and every file that does not fit refused."""

import edge_cases
import pytest
import torch
from surgery.diagnostics import SurgeryError
from surgery.models import open_model
from surgery.session import apply, plan

import surgery

pytest.importorskip("transformers")
LENGTH, HEADS = edge_cases.LENGTH, 4
SITE, OTHER = "transformer.h.0.attn", "transformer.h.1.attn"
CLAUSE = 'sparsify attention to edges "edges.safetensors"'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("given")


@pytest.fixture(scope="module")
def anatomy(root):
    opened = open_model(f"hf:{edge_cases.folder('gpt2', root)}")
    return surgery.inspect(opened.module, opened.example_inputs)


def pattern(seed=0):
    """bool [H, S, S], a few edges of each query and its own."""
    kept = torch.rand(HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(seed)) < 0.1
    return kept.tril() | torch.eye(LENGTH, dtype=torch.bool)


def test_a_given_pattern_is_proven_and_only_its_edges_are_kept(root, anatomy, tmp_path):
    masks = {SITE: pattern(0), OTHER: pattern(1)}
    surgery.write_edges(root / "edges.safetensors", {SITE: masks[SITE], OTHER: masks[OTHER].nonzero()}, anatomy)
    result = apply(edge_cases.spec(root, "gpt2", CLAUSE + " normalize=all"), tmp_path / "out", timing=False)
    assert all(row["holds"] for row in result.report["parity"])
    assert [row["name"] for row in result.report["controls"]] == ["random edges, as many"]
    possible = LENGTH * (LENGTH + 1) / 2
    for row in edge_cases.of(result.report)["sites"]:
        wanted = masks[row["site"]].sum((1, 2)) / possible
        assert row["kept"] == pytest.approx(wanted.tolist()) and all(0 < mass < 1 for mass in row["mass"])
    again = surgery.load(tmp_path / "out")
    ids = torch.arange(20)[None] + 5
    with torch.no_grad():
        ours, theirs = (module(input_ids=ids, attention_mask=torch.ones_like(ids))[0] for module in (result.module, again))
    assert torch.equal(ours, theirs)
    with pytest.raises((ValueError, IndexError)):
        again(input_ids=ids.repeat(1, 3), attention_mask=torch.ones(1, 60, dtype=torch.int64))


def ahead(masks):
    masks[SITE][2, 5, 9] = True


def bare(masks):
    masks[SITE][1, 7] = False


WRONG = {
    "ahead": (ahead, rf"edge \(2, 5, 9\) of `{SITE}` looks ahead"),
    "bare": (bare, f"query 7 of head 1 of `{SITE}` is left without an edge"),
    "missing": (lambda masks: masks.pop(OTHER), f"it has no edges of `{OTHER}`"),
    "fewer heads": (lambda masks: masks.update({SITE: masks[SITE][:3]}), "query 0 of head 3 of"),
    "unknown": (lambda masks: masks.update({"transformer.h.7.attn": masks.pop(OTHER)}), "no attention `transformer.h.7"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_pattern_that_does_not_fit_is_refused(name, root, anatomy):
    change, message = WRONG[name]
    masks = {SITE: pattern(), OTHER: pattern()}
    change(masks)
    with pytest.raises(SurgeryError, match=message) as caught:
        surgery.write_edges(root / "edges.safetensors", masks, anatomy)
        plan(None, edge_cases.spec(root, "gpt2", CLAUSE))
    assert caught.value.diagnostics[0].code == "S333" and caught.value.diagnostics[0].help


def test_files_of_other_models_and_broken_ones_are_refused(root, anatomy):
    surgery.write_edges(root / "edges.safetensors", {SITE: pattern(), OTHER: pattern()}, anatomy)
    longer = edge_cases.spec(root, "gpt2", "prune 25% of mlp channels by magnitude", CLAUSE)
    assert plan(None, longer).actions
    content = (root / "edges.safetensors").read_bytes()
    (root / "edges.safetensors").write_bytes(content.replace(b"sha256:", b"sha257:"))
    with pytest.raises(SurgeryError, match="made for another model") as caught:
        plan(None, edge_cases.spec(root, "gpt2", CLAUSE))
    assert caught.value.diagnostics[0].span is not None
    (root / "edges.safetensors").write_bytes(content[:100])
    with pytest.raises(SurgeryError, match="it cannot be read"):
        plan(None, edge_cases.spec(root, "gpt2", CLAUSE))
    with pytest.raises(SurgeryError, match="there is no file"):
        plan(None, edge_cases.spec(root, "gpt2", 'sparsify attention to edges "nowhere.safetensors"'))

"""`sparsify attention … via topk`: the highest scores of each query, found in two ways, on models that others wrote."""

from fractions import Fraction

import edge_cases
import pytest
import torch
from surgery.anatomy import inspect
from surgery.passes.keep_top import KeepTop
from surgery.passes.runner import run_passes
from surgery.passes.write_out_attention import WriteOutAttention
from surgery.session import apply

import surgery

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("topk")


CASES = [
    ("gpt2", "sparsify attention 75% via topk", torch.float32, True),
    ("llama", "sparsify attention 75% via topk score=predicted normalize=all", torch.float32, False),
    ("bert", "sparsify attention 60% via topk normalize=all", torch.bfloat16, False),
]


@pytest.mark.parametrize("kind, clause, dtype, controls", CASES)
def test_top_scores_are_proven_told_and_reloaded(kind, clause, dtype, controls, root, tmp_path):
    path = edge_cases.spec(root, kind, clause, dtype=dtype)
    result = apply(path, tmp_path / "out", timing=False, controls=controls)
    report, found = result.report, edge_cases.of(result.report)
    assert all(row["holds"] for row in report["parity"]) and len(report["parity"]) >= 3
    assert len(report["controls"]) == controls
    for row in found["sites"]:
        least = float(1 - Fraction(str(found["requested"])))
        assert all(least <= share < least + 0.06 for share in row["kept"])
        assert all(kept < mass <= 1 for kept, mass in zip(row["kept"], row["mass"], strict=True))
        assert ("recall" in row) == ("predicted" in clause) and all(0 < each <= 1 for each in row.get("recall", []))
    again = surgery.load(tmp_path / "out")
    ids = torch.arange(40).reshape(2, 20) + 5
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        ours, theirs = (next(iter(_plain(module(**inputs)))) for module in (result.module, again))
    assert torch.equal(ours, theirs)
    if kind == "gpt2":
        written = again.generate(ids[:1, :6], max_new_tokens=8)
        with torch.no_grad():
            logits = next(iter(_plain(again(input_ids=written, attention_mask=torch.ones_like(written)))))
        assert torch.equal(logits[:, 5:-1].argmax(-1), written[:, 6:])


def _plain(outputs):
    return outputs.values() if isinstance(outputs, dict) else outputs


class Causal(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        made = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(made.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("normalize", ["all", "kept"])
@pytest.mark.parametrize("share", [Fraction(1, 20), Fraction(1, 3), Fraction(1)])
def test_each_query_keeps_its_share_rounded_up(share, normalize):
    torch.manual_seed(0)
    model, x = Causal().eval(), torch.randn(2, 30, 16)
    anatomy = inspect(model, {"x": x})
    (site,) = anatomy.of_kind("attention")
    call = site.nodes[0].name
    steps = [WriteOutAttention("", "", (call,)), KeepTop("", "", site, call, share, normalize)]
    graph_module = run_passes(anatomy.graph_module, steps)
    with torch.no_grad():
        q, k, v = model.qkv(x).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.mT / 2).masked_fill(~torch.ones(30, 30).tril().bool(), float("-inf"))
        whole = scores.softmax(-1)
        kept = torch.zeros_like(scores, dtype=torch.bool)
        for query in range(30):
            most = -(-(query + 1) * share.numerator // share.denominator)
            kept[:, :, query].scatter_(-1, scores[:, :, query].topk(most).indices, True)
        weights = whole * kept if normalize == "all" else scores.masked_fill(~kept, float("-inf")).softmax(-1)
        expected = model.out((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(graph_module(x=x), expected, rtol=0, atol=1e-6)

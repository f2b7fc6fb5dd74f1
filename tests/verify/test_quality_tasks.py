"""The metrics of each task against their definitions written out, and what they must not depend on."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from surgery.models.data import Data
from surgery.models.loaded import LoadedModel
from surgery.verify import beside
from surgery.verify.quality import OutputQuality, TaskQuality, quality

ROWS, LENGTH, CLASSES = 7, 6, 11


class Table(nn.Module):
    """Logits (or states) [N, T, C] by token; `calls` counts its rows."""

    def __init__(self, seed: int, scale: float = 1.0):
        super().__init__()
        table = scale * torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(seed))
        self.table = nn.Parameter(table, requires_grad=False)
        self.calls = 0

    def forward(self, input_ids, attention_mask=None):
        self.calls += len(input_ids)
        return {"logits": self.table[input_ids]}


class First(Table):
    """Logits [N, C] of the first token alone."""

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.table[input_ids[:, 0]]}


@pytest.fixture
def tokens():
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(CLASSES, (ROWS, LENGTH), generator=chance)
    mask = (torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (ROWS, 1), generator=chance)).long()
    return {"input_ids": ids, "attention_mask": mask}


def test_of(original, tokens, task, targets=None, **options):
    model = LoadedModel("tests:table", original, {name: value[:2] for name, value in tokens.items()})
    return quality(model, Data("made", "rows", "", tokens, task=task, targets=targets), samples=1, seed=0, **options)


test_of.__test__ = False


def next_tokens(tokens):
    shifted = torch.cat([tokens["input_ids"][:, 1:], torch.full((ROWS, 1), -100)], 1)
    real = torch.cat([tokens["attention_mask"][:, 1:], torch.zeros(ROWS, 1)], 1)
    return shifted.masked_fill(real == 0, -100)


@pytest.mark.parametrize("task", ["causal-lm", "masked-lm", "seq2seq-lm"])
def test_loss_and_perplexity_are_means_over_scored_tokens(task, tokens):
    original, targets = Table(0), next_tokens(tokens)
    test = test_of(original, tokens, task, targets)
    assert isinstance(test, TaskQuality) and test.metrics == ("loss", "perplexity", "logit kl", "agreement")
    logs = original.table.detach()[tokens["input_ids"]].double().log_softmax(-1)
    scored = [-float(logs[n, t, targets[n, t]]) for n in range(ROWS) for t in range(LENGTH) if targets[n, t] >= 0]
    found = test.measure(original)
    assert found.metrics["loss"] == pytest.approx(sum(scored) / len(scored), rel=1e-6)
    assert found.metrics["perplexity"] == pytest.approx(math.exp(sum(scored) / len(scored)), rel=1e-6)


def test_kl_and_agreement_are_means_over_real_tokens(tokens):
    original, cut = Table(0), Table(1)
    found = test_of(original, tokens, "causal-lm", next_tokens(tokens)).measure(cut).paired
    real = tokens["attention_mask"].bool()
    p, q = (table.table[tokens["input_ids"]].double().log_softmax(-1)[real] for table in (original, cut))
    assert found["logit kl"] == pytest.approx(float(F.kl_div(q, p, log_target=True, reduction="batchmean")), rel=1e-6)
    assert found["agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


def test_padding_changes_nothing(tokens):
    other = tokens | {"input_ids": tokens["input_ids"].where(tokens["attention_mask"] == 1, 3)}
    for task in ("causal-lm", "embedding"):
        found = [test_of(Table(0), given, task).measure(Table(1)).paired for given in (tokens, other)]
        assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_the_original_beside_itself_is_equal_exactly(tokens):
    original = Table(0)
    tasks = {"causal-lm": {"logit kl": 0.0, "agreement": 1.0}, "embedding": {"embedding cosine": 1.0}}
    for task, same in tasks.items():
        test = test_of(original, tokens, task)
        before = test.measure(original)
        assert test.compare(before, before) == same
        twin = Table(0)
        assert test.compare(before, test.measure(twin)) == pytest.approx(same, abs=1e-12)


def test_embedding_cosine_is_of_means_over_real_tokens(tokens):
    original, cut = Table(0), Table(1)
    found = test_of(original, tokens, "embedding").measure(cut).paired["embedding cosine"]
    cosines = []
    for ids, mask in zip(tokens["input_ids"], tokens["attention_mask"].bool(), strict=True):
        a, b = (table.table[ids[mask]].double().mean(0) for table in (original, cut))
        cosines.append(float(a @ b / (a.norm() * b.norm())))
    assert found == pytest.approx(sum(cosines) / ROWS, rel=1e-9)


def test_a_classifier_with_labels_and_without(tokens):
    original, labels = First(0), torch.arange(ROWS) % CLASSES
    test = test_of(original, tokens, "classification", labels)
    found = test.measure(original).metrics
    logits = original.table[tokens["input_ids"][:, 0]]
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).double().mean()))
    assert test_of(original, tokens, "classification").metrics == ("logit kl", "agreement")


@pytest.mark.parametrize("task", ["causal-lm", "embedding", None])
@pytest.mark.parametrize("kept", [1 << 20, 0], ids=["kept", "computed again"])
def test_batches_and_what_is_kept_change_no_figure(task, kept, tokens, monkeypatch):
    monkeypatch.setattr(beside, "KEPT", kept)
    whole, parts = (test_of(Table(0), tokens, task, batch=batch) for batch in (None, 2))
    original = parts.beside.original
    for test in (whole, parts):
        test.measure(test.beside.original)
    original.calls = 0
    found = [test.measure(Table(1)).paired for test in (whole, parts)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert original.calls == (0 if kept else ROWS)
    assert isinstance(whole, OutputQuality if task is None else TaskQuality)


def test_a_batch_is_as_large_as_its_outputs_allow(tokens, monkeypatch):
    monkeypatch.setattr(beside, "WIDE", 3 * 4 * LENGTH * CLASSES)
    seen = []
    test_of(Table(0), tokens, "causal-lm").measure(Table(1), progress=lambda *counts: seen.append(counts))
    assert seen == [(3, 7), (6, 7), (7, 7)]


def test_a_model_that_gives_nan_is_not_called_good(tokens):
    broken = Table(0, scale=float("nan"))
    for task in ("causal-lm", "embedding", None):
        test = test_of(Table(0), tokens, task, next_tokens(tokens) if task == "causal-lm" else None)
        found = test.measure(broken)
        first = next(name for name in test.metrics if name not in ("agreement",))
        assert not math.isfinite((found.metrics | found.paired)[first]), task


@pytest.mark.parametrize(("both", "kl"), [(True, 0.0), (False, math.inf)], ids=["neither says it", "only the cut not"])
def test_a_token_that_is_never_said(both, kl, tokens):
    original, cut = Table(0), Table(0)
    for table in (original, cut) if both else (cut,):
        table.table[:, 3] = -math.inf
    found = test_of(original, tokens, "causal-lm").measure(cut).paired
    assert found["logit kl"] == pytest.approx(kl, abs=1e-12)


def test_half_precision_is_summed_in_single(tokens):
    original = Table(0)
    whole = test_of(original, tokens, "causal-lm", next_tokens(tokens)).measure(original).metrics["loss"]
    half = Table(0).bfloat16()
    found = test_of(half, tokens, "causal-lm", next_tokens(tokens)).measure(half).metrics["loss"]
    assert found == pytest.approx(whole, rel=2e-2)

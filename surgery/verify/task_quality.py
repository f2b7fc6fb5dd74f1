"""Language models, encoders and classifiers by the measure of their own task.

task            measured                       beside the original
causal-lm       loss, perplexity (accuracy)    logit kl, agreement
masked-lm       loss, perplexity               logit kl, agreement
seq2seq-lm      loss, perplexity               logit kl, agreement
classification  loss, accuracy (with labels)   logit kl, agreement
embedding                                      embedding cosine

loss              mean cross-entropy in nats over scored tokens (or rows); perplexity is its exponential
accuracy          share of rows whose most likely class is the label; of a language, where the data says what is right,
                  share of scored tokens whose most likely token is one of those that are right
logit kl          mean over real tokens (or rows) of KL(original || module), in nats
agreement         share of real tokens (or rows) whose most likely class is the original's
embedding cosine  mean over rows of the cosine between the original's and the module's mean over real tokens
"""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from surgery.models.data import Data
from surgery.models.loaded import LoadedModel
from surgery.verify.beside import EQUAL, Beside, Progress
from surgery.verify.measurement import Measurement
from surgery.verify.output_quality import options_of

LANGUAGE = ("causal-lm", "masked-lm", "seq2seq-lm")
TASKS = (*LANGUAGE, "classification", "embedding")
UNSCORED = -100
Sums = Counter[str]


class TaskQuality:
    """The metrics of the data's task, one pass per module, `batch` rows at a time; as many as fit without it."""

    def __init__(self, model: LoadedModel, data: Data, *, batch: int | None = None):
        if data.task not in TASKS:
            raise ValueError(f"no task: {data.task}")
        self.data = data
        self.beside = Beside(model.module, data.inputs, options_of(model), batch)

    @property
    def metrics(self) -> tuple[str, ...]:
        if self.data.task == "embedding":
            return ("embedding cosine",)
        return (*self._told, "logit kl", "agreement")

    @property
    def description(self) -> str:
        return f"{self.data.reference}: {self.data.description}"

    def measure(self, module: Any, progress: Progress | None = None) -> Measurement:
        """Run the module over the held-out rows; `progress(done, total)` counts rows."""
        sums: Sums = Counter()
        for rows, ours, theirs in self.beside(module, progress):
            same = module is self.beside.original
            sums.update(self._batch(rows, ours[0], None if same else theirs[0]))
        metrics = self._own(sums)
        if module is self.beside.original:
            return Measurement(metrics, paired={name: EQUAL[name] for name in self.metrics if name in EQUAL})
        names = [name for name in self.metrics if name in EQUAL]
        return Measurement(metrics, paired={name: sums[name] / sums["rows"] for name in names})

    def compare(self, before: Measurement, after: Measurement) -> dict[str, float]:
        """What the second measurement found beside the original."""
        return dict(after.paired)

    @property
    def _told(self) -> tuple[str, ...]:
        """What is told of a module alone."""
        if self.data.targets is None:
            return ()
        if self.data.task not in LANGUAGE:
            return ("loss", "accuracy")
        return ("loss", "perplexity") if self.data.right is None else ("loss", "perplexity", "accuracy")

    def _own(self, sums: Sums) -> dict[str, float]:
        loss, right = (sums[name] / sums["scored"] if sums["scored"] else math.nan for name in ("loss", "right"))
        found = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf, "accuracy": right}
        return {name: found[name] for name in self._told}

    def _batch(self, rows: slice, ours: Tensor, theirs: Tensor | None) -> Sums:
        real = self._real(rows, ours)
        if self.data.task == "embedding":
            return Counter() if theirs is None else _cosines(pooled(ours, real), pooled(theirs, real))
        sums: Sums = Counter()
        for row in range(len(ours)):  # a row at a time: float32 copies of a batch's logits can be large
            mask = None if real is None else real[row]
            sums.update(_compared(ours[row], None if theirs is None else theirs[row], mask))
            if self.data.targets is not None:
                sums.update(self._scored(ours[row], rows.start + row))
        return sums

    def _scored(self, logits: Tensor, row: int) -> Sums:
        """Of one row's logits [T, C] or [C], against the row's targets."""
        logits, targets = _flat(logits), self.data.targets[row].to(logits.device).reshape(-1)
        loss = F.cross_entropy(logits, targets, ignore_index=UNSCORED, reduction="none").double().sum()
        there, likely = targets != UNSCORED, logits.argmax(-1)
        if self.data.right is None:
            right = likely == targets
        else:
            first, last = self.data.right[row].to(logits.device).unbind(-1)
            right = (first <= likely) & (likely <= last)
        return Counter({"loss": float(loss), "scored": int(there.sum()), "right": int((right & there).sum())})

    def _real(self, rows: slice, output: Tensor) -> Tensor | None:
        """Which positions of the output [N, T, ..] are no padding, by the attention mask of the side it belongs to."""
        side = "decoder_attention_mask" if "decoder_input_ids" in self.data.inputs else "attention_mask"
        mask = self.data.inputs.get(side)
        if mask is None or output.dim() < 3 or mask.shape[1] != output.shape[1]:
            return None
        return (mask[rows] != 0).to(output.device)


def pooled(states: Tensor, real: Tensor | None) -> Tensor:
    """[N, D]: the mean of states [N, T, D] over real tokens, of maps [N, D, H, W] over places; [N, D] as it is."""
    states = states.double()
    if states.dim() == 4:
        return states.mean((2, 3))
    if states.dim() == 2:
        return states
    if real is None:
        return states.mean(1)
    weight = real.double().unsqueeze(-1)
    return (states * weight).sum(1) / weight.sum(1).clamp_min(1)


def _cosines(ours: Tensor, theirs: Tensor) -> Sums:
    cosines = F.cosine_similarity(ours, theirs, dim=-1)
    return Counter({"embedding cosine": float(cosines.sum()), "rows": len(cosines)})


def _compared(ours: Tensor, theirs: Tensor | None, real: Tensor | None) -> Sums:
    """Of one row's logits [T, C] or [C]."""
    if theirs is None:
        return Counter()
    ours, theirs = (_flat(logits)[... if real is None else real] for logits in (ours, theirs))
    log_q, log_p = ours.log_softmax(-1), theirs.log_softmax(-1)
    p = log_p.exp()
    # What the original never says costs nothing, whatever the module says of it. Rounding can make a sum of tiny terms
    # negative; a divergence is not.
    kl = (p * (log_p - log_q)).masked_fill(p == 0, 0.0).sum(-1).clamp_min(0).double()
    agree = ours.argmax(-1) == theirs.argmax(-1)
    return Counter({"logit kl": float(kl.sum()), "agreement": int(agree.sum()), "rows": len(kl)})


def _flat(logits: Tensor) -> Tensor:
    """[T, C] in float32 at least."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.reshape(-1, wide.shape[-1])

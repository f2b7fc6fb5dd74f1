"""How much attention passes through each block of queries and keys, per head, on calibration data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.functional import pad

from surgery.anatomy.attention_form import AttentionForm
from surgery.anatomy.graphs import placeholders
from surgery.targets.calibration import MASKS, Calibration
from surgery.targets.context import Progress

MOST_TOKENS = 1 << 16
"""Of calibration data, this much is looked at, or its first batch where that is more."""
ROWS = 256


@dataclass(eq=False)
class Mass:
    """Of one site: `table` [H, R, C], the attention between block rows of queries and block columns of keys, over all
    queries seen; `length` the most keys."""

    block: int
    causal: bool
    table: Tensor | None = None
    length: int = 0

    def add(self, table: Tensor, keys: int) -> None:
        """Blocks of a further batch; of all batches the first keys are the same positions."""
        table = table.cpu()
        if self.table is not None:
            grow = [max(old, new) for old, new in zip(self.table.shape[1:], table.shape[1:], strict=True)]
            self.table, table = (_filled(each, *grow) for each in (self.table, table))
            table = table + self.table
        self.table, self.length = table, max(self.length, keys)

    @property
    def share(self) -> Tensor:
        """The table as shares of each head's attention: it sums to 1 over blocks."""
        return self.table / self.table.sum((1, 2), keepdim=True).clamp(min=1e-300)


@torch.no_grad()
def measure(
    graph_module: GraphModule,
    forms: Mapping[str, tuple[AttentionForm, bool]],
    calibration: Calibration,
    block: int,
    progress: Progress,
) -> dict[str, Mass]:
    """The mass of each form, by the name of its node; a form comes with whether its site is causal."""
    masses = {name: Mass(block, causal) for name, (_, causal) in forms.items()}
    for index, (inputs, _) in enumerate(batches(calibration)):
        progress("measuring attention", index, len(calibration))
        real = next((inputs[name] for name in MASKS if isinstance(inputs.get(name), Tensor)), None)
        _Measure(graph_module, forms, masses, real).values(calibration, inputs)
    return masses


def batches(calibration: Calibration) -> Iterator[tuple[dict[str, Any], Tensor | None]]:
    """Batches of the calibration data up to `MOST_TOKENS`."""
    seen = 0
    for inputs, targets in calibration.batches():
        if seen >= MOST_TOKENS:
            return
        yield inputs, targets
        first = next(value for value in inputs.values() if isinstance(value, Tensor) and value.dim())
        seen += first.shape[0] * (first.shape[1] if first.dim() in (2, 3) else 1)


class Run(Interpreter):
    """A graph run on one batch of calibration data."""

    def values(self, calibration: Calibration, inputs: Mapping[str, Any]) -> Any:
        placed = calibration.placed(self.module, inputs)
        return self.run(*(placed[node] for node in placeholders(self.module)), enable_io_processing=False)


class Watch(Run):
    """Sees every attention as it is computed: `weights` takes the softmax of some queries, `seen` comes once per call."""

    def __init__(
        self, graph_module: GraphModule, forms: Mapping[str, tuple[AttentionForm, bool]], real: Tensor | None
    ) -> None:
        super().__init__(graph_module)
        self.names = {form.product if form.fused else form.softmax: name for name, (form, _) in forms.items()}
        self.forms, self.real = forms, real

    def weights(self, name: str, weights: Tensor, start: int, keys: int) -> None:
        """[B, H, n, Sk] of queries from `start` on; queries that are padding have none."""

    def seen(self, name: str, form: AttentionForm) -> None:
        """The call's inputs stand in `env`."""
        if not form.fused:
            made = heads_first(self.env[form.softmax])
            return self.weights(name, self._of_real(made, 0), 0, made.shape[-1])
        q, k = self.env[form.query], self.env[form.key]
        mask = None if form.mask is None else self.env[form.mask]
        for start in range(0, q.shape[-2], ROWS):
            self.weights(name, self._of_real(_weights(q, k, mask, form, start), start), start, k.shape[-2])

    def run_node(self, node: Node) -> Any:
        made = super().run_node(node)
        if node in self.names:
            self.env[node] = made
            self.seen(self.names[node], self.forms[self.names[node]][0])
        return made

    def _of_real(self, weights: Tensor, start: int) -> Tensor:
        real, end = self.real, start + weights.shape[2]
        if real is None or real.dim() != 2 or real.shape[0] != len(weights) or real.shape[1] < end:
            return weights
        return weights * (real[:, None, start:end, None] != 0).to(weights.device)


class _Measure(Watch):
    def __init__(self, graph_module: GraphModule, forms: Any, masses: dict[str, Mass], real: Tensor | None) -> None:
        super().__init__(graph_module, forms, real)
        self.masses = masses

    def weights(self, name: str, weights: Tensor, start: int, keys: int) -> None:
        mass = self.masses[name]
        mass.add(blocked(weights.double().sum(0), mass.block, start), keys)


def blocked(weights: Tensor, block: int, start: int = 0) -> Tensor:
    """[H, n, Sk] of queries from `start` on as sums of blocks [H, R, C]."""
    heads, rows, keys = weights.shape
    last, columns = -(-(start + rows) // block), -(-keys // block)
    down = pad(weights, (0, columns * block - keys)).view(heads, rows, columns, block).sum(3)
    place = torch.arange(start, start + rows, device=weights.device) // block
    return weights.new_zeros(heads, last, columns).index_add_(1, place, down)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, form: AttentionForm, start: int) -> Tensor:
    """softmax(s) [B, H, n, Sk] of some queries, float32; queries that see nobody have none."""
    rows = slice(start, min(start + ROWS, q.shape[-2]))
    q, k = heads_first(q)[:, :, rows].float(), heads_first(k).float()
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q @ k.transpose(-1, -2) * form.scale
    if form.causal:
        query = torch.arange(rows.start, rows.stop, device=q.device)
        scores = scores.masked_fill(torch.arange(k.shape[2], device=q.device) > query[:, None], float("-inf"))
    if mask is not None:
        part = mask if mask.shape[-2] == 1 else mask[..., rows, :]
        scores = scores.masked_fill(~part, float("-inf")) if part.dtype == torch.bool else scores + part.float()
        scores = scores.masked_fill(scores <= torch.finfo(torch.float32).min / 2, float("-inf"))
    return scores.softmax(-1).nan_to_num(0)


def heads_first(x: Tensor) -> Tensor:
    """[B, H, S, D] of [.., heads.., S, D]."""
    return x.flatten(1, -3) if x.dim() > 3 else x.unsqueeze(1)


def _filled(table: Tensor, rows: int, columns: int) -> Tensor:
    return pad(table, (0, columns - table.shape[2], 0, rows - table.shape[1]))

"""How much attention passes through each block of queries and keys, per head, on calibration data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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
    queries seen; `length` the most keys; `query` and `key` shapes [B, heads, S, D] of the last batch, `dtype` theirs."""

    block: int
    causal: bool
    table: Tensor | None = None
    length: int = 0
    query: tuple[int, ...] = ()
    key: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    masked: bool = False

    def add(self, table: Tensor, keys: int) -> None:
        """Blocks of a further batch; of all batches the first keys are the same positions."""
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
        _Watch(graph_module, forms, masses, real).values(calibration, inputs)
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


class _Watch(Run):
    def __init__(
        self,
        graph_module: GraphModule,
        forms: Mapping[str, tuple[AttentionForm, bool]],
        masses: dict[str, Mass],
        real: Tensor | None,
    ) -> None:
        super().__init__(graph_module)
        self.fused = {form.product: name for name, (form, _) in forms.items() if form.fused}
        self.softmax = {form.softmax: name for name, (form, _) in forms.items() if not form.fused}
        self.forms, self.masses, self.real = forms, masses, real

    def run_node(self, node: Node) -> Any:
        made = super().run_node(node)
        if node in self.softmax:
            name = self.softmax[node]
            self._add(name, _heads_first(made), 0)
        elif node in self.fused:
            name = self.fused[node]
            form = self.forms[name][0]
            q, k = self.env[form.query], self.env[form.key]
            mask = None if form.mask is None else self.env[form.mask]
            mass = self.masses[name]
            mass.query, mass.key, mass.dtype, mass.masked = tuple(q.shape), tuple(k.shape), q.dtype, mask is not None
            for start in range(0, q.shape[-2], ROWS):
                self._add(name, _weights(q, k, mask, form, start), start, k.shape[-2])
        return made

    def _add(self, name: str, weights: Tensor, start: int, keys: int | None = None) -> None:
        """Weights [B, H, n, Sk] of queries from `start` on."""
        mass, real = self.masses[name], self.real
        end = start + weights.shape[2]
        if real is not None and real.dim() == 2 and real.shape[0] == len(weights) and real.shape[1] >= end:
            weights = weights * (real[:, None, start:end, None] != 0)
        mass.add(blocked(weights.double().sum(0), mass.block, start), keys or weights.shape[-1])


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
    q, k = _heads_first(q)[:, :, rows].float(), _heads_first(k).float()
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


def _heads_first(x: Tensor) -> Tensor:
    """[B, H, S, D] of [.., heads.., S, D]."""
    return x.flatten(1, -3) if x.dim() > 3 else x.unsqueeze(1)


def _filled(table: Tensor, rows: int, columns: int) -> Tensor:
    return pad(table, (0, columns - table.shape[2], 0, rows - table.shape[1]))

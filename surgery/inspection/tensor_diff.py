"""How the tensors of two models differ."""

from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.inspection.values import dtype_name, shape_text

CHUNK = 1 << 22


@dataclass(frozen=True)
class TensorChange:
    """`kind` is added, removed, resized, retyped, changed (its values) or unknown (on the meta device).

    `max_abs` is the largest absolute difference, `fraction` the share of entries that differ, `norms` the 2-norms
    before and after; known where shapes are equal.
    """

    kind: str
    name: str
    before: str = ""
    after: str = ""
    max_abs: float | None = None
    fraction: float | None = None
    norms: tuple[float, float] | None = None


def tensor_changes(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[TensorChange]:
    """Differences by name, in the order of `before`, then what is new."""
    found = [_compare(name, tensor, after.get(name)) for name, tensor in before.items()]
    found += [TensorChange("added", name, after=_text(tensor)) for name, tensor in after.items() if name not in before]
    return [change for change in found if change]


def _compare(name: str, before: Tensor, after: Tensor | None) -> TensorChange | None:
    if after is None:
        return TensorChange("removed", name, _text(before))
    texts = _text(before), _text(after)
    if before.shape != after.shape:
        return TensorChange("resized", name, *texts)
    kind = "changed" if before.dtype == after.dtype else "retyped"
    if before.is_meta or after.is_meta:
        same = kind == "changed" and before.is_meta and after.is_meta
        return None if same else TensorChange("unknown" if kind == "changed" else kind, name, *texts)
    max_abs, fraction = _values(before, after)
    if kind == "changed" and not fraction:
        return None
    return TensorChange(kind, name, *texts, max_abs, fraction, (_norm(before), _norm(after)))


def _text(tensor: Tensor) -> str:
    return dtype_name(tensor.dtype) + shape_text(tensor.shape)


def _values(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Largest absolute difference and share of entries that differ; NaN equals NaN, in float64 piece by piece."""
    largest, differing = 0.0, 0
    for ours, theirs in zip(_pieces(before), _pieces(after), strict=True):
        changed = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
        differing += int(changed.sum())
        if changed.any():
            largest = max(largest, float((ours - theirs)[changed].abs().nan_to_num(nan=torch.inf).max()))
    return largest, differing / max(before.numel(), 1)


def _pieces(tensor: Tensor) -> list[Tensor]:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return [piece.to("cpu", wide) for piece in tensor.detach().reshape(-1).split(CHUNK)]


def _norm(tensor: Tensor) -> float:
    return float(torch.stack([piece.abs().square().sum() for piece in _pieces(tensor)]).sum().sqrt())

"""A model of a smaller vocabulary, called and answering like the one it was cut from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from surgery.targets.choice import Choice


class Renumbered(nn.Module):
    """The original's inputs in, its scores out.

    A removed token is fed as the one that stands in for it, and is scored as the least likely of those that stay: that
    is what a measurement beside the original counts it as. `names` and `places` say which inputs are ids, `outputs`
    which of the outputs, laid flat, are scores; with `new` the model takes new ids, else old ones.
    """

    def __init__(
        self,
        module: nn.Module | None,
        choice: Choice,
        rows: int,
        names: tuple[str, ...],
        places: tuple[int, ...],
        outputs: tuple[int, ...],
        new: bool,
    ) -> None:
        super().__init__()
        self.module, self.keep, self.rows = module, choice.keep, rows
        self.names, self.places, self.outputs = frozenset(names), frozenset(places), frozenset(outputs)
        back = substituted(choice, rows)
        number = torch.full((rows,), -1, dtype=torch.int64)
        number[choice.keep] = torch.arange(len(choice.keep))
        self.map = number[back] if new else back

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        positional, named = self.fed(args), self.fed(kwargs)
        leaves, form = pytree.tree_flatten(self.module(*positional, **named))
        wide = [self._wide(leaf) if place in self.outputs else leaf for place, leaf in enumerate(leaves)]
        return pytree.tree_unflatten(wide, form)

    def fed(self, inputs: tuple | Mapping[str, Any]) -> Any:
        """Inputs with other ids, positional or by name."""
        if isinstance(inputs, Mapping):
            return {name: self._mapped(value) if name in self.names else value for name, value in inputs.items()}
        return tuple(self._mapped(value) if place in self.places else value for place, value in enumerate(inputs))

    def _mapped(self, ids: Tensor) -> Tensor:
        return ids if ids.is_meta else self.map.to(ids.device)[ids.long()].to(ids.dtype)

    def _wide(self, scores: Tensor) -> Tensor:
        least = scores.amin(-1, keepdim=True).expand(*scores.shape[:-1], self.rows)
        return least.index_copy(-1, self.keep.to(scores.device), scores)


def substituted(choice: Choice, rows: int) -> Tensor:
    """[V] int64, old id → old id: what is gone is the unknown token, or the first that is kept where there is none."""
    stand = int(choice.keep[0]) if choice.unknown is None else choice.unknown
    return torch.full((rows,), stand, dtype=torch.int64).index_copy(0, choice.keep, choice.keep)

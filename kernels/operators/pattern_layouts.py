"""Layouts of `Rules` at the lengths they run at, made once and kept while there is room."""

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from surgery.kernels.layouts import Blocks, Edges
from surgery.kernels.layouts.convert import edges_from_blocks
from surgery.kernels.layouts.rules import Rules
from torch import Tensor

ROOM = 1 << 29
"""Bytes of layouts kept for a process."""
KINDS = ("block", "edge")


class Layouts:
    """The latest layouts by what they are made of; thread-safe. Two threads may make one twice, never half."""

    def __init__(self, room: int = ROOM) -> None:
        self.room, self.taken, self.lock = room, 0, threading.Lock()
        self.kept: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self.digests: dict[int, tuple[weakref.ref, int, bytes]] = {}

    def get(self, rules: Rules, queries: int, keys: int, causal: bool, kind: str) -> Blocks | Edges:
        """The layout of a kind, `block` or `edge`."""

        def make() -> Blocks | Edges:
            made = rules.blocks(queries, keys, causal)
            return edges_from_blocks(made) if kind == "edge" else made

        return self._made(rules, (queries, keys, causal, kind), make, lambda made: made.tensors())

    def row(self, rules: Rules, row: int, blocks: int) -> tuple[Tensor, Tensor]:
        """Keys of the blocks that queries of a block row keep, of `blocks` there are: int64 [H, n], and which of these
        count, bool [H, n]: heads that keep fewer than others are filled up."""
        return self._made(rules, (row, blocks), lambda: _keys_of(rules, row, blocks), list)

    def _made(self, rules: Rules, at: tuple, make: Callable[[], Any], tensors: Callable[[Any], list[Tensor]]) -> Any:
        parts = tuple(self._digest(tensor) for tensor in rules.tensors())
        key = (parts, str(rules.columns.device), rules.block, rules.length, *at)
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key][0]
        made = make()
        self._keep(key, made, sum(tensor.nbytes for tensor in tensors(made)))
        return made

    def _keep(self, key: Hashable, made: Any, size: int) -> None:
        with self.lock:
            if key in self.kept or size > self.room:
                return
            self.kept[key] = made, size
            self.taken += size
            while self.taken > self.room:
                self.taken -= self.kept.popitem(last=False)[1][1]

    def _digest(self, tensor: Tensor) -> bytes:
        """Of a tensor's numbers; read again only if it is another tensor or was changed."""
        version = -1 if tensor.is_inference() else tensor._version
        found = self.digests.get(id(tensor))
        if found is not None and found[0]() is tensor and found[1] == version >= 0:
            return found[2]
        digest = hashlib.sha256(repr(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes()).digest()
        with self.lock:
            if len(self.digests) > 4096:
                self.digests = {place: each for place, each in self.digests.items() if each[0]() is not None}
            self.digests[id(tensor)] = weakref.ref(tensor), version, digest
        return digest


LAYOUTS = Layouts()


def _keys_of(rules: Rules, row: int, blocks: int) -> tuple[Tensor, Tensor]:
    kept = rules.table(torch.tensor([row], device=rules.columns.device), blocks)[:, 0]
    most = int(kept.sum(1).max())
    held, places = kept.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    inside = torch.arange(rules.block, device=kept.device)
    positions = places[:, :most, None] * rules.block + inside
    return positions.flatten(1), held[:, :most].bool().repeat_interleave(rules.block, 1)

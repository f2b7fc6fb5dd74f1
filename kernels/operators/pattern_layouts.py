"""Layouts of `Rules` at the lengths they run at, made once and kept while there is room."""

import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

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
        self.kept: OrderedDict[Hashable, tuple[Blocks | Edges, int]] = OrderedDict()
        self.digests: dict[int, tuple[weakref.ref, int, bytes]] = {}

    def get(self, rules: Rules, queries: int, keys: int, causal: bool, kind: str) -> Blocks | Edges:
        """The layout of a kind, `block` or `edge`."""
        parts = tuple(self._digest(tensor) for tensor in rules.tensors())
        key = (parts, str(rules.columns.device), rules.block, rules.length, queries, keys, causal, kind)
        with self.lock:
            if key in self.kept:
                self.kept.move_to_end(key)
                return self.kept[key][0]
        made: Any = rules.blocks(queries, keys, causal)
        made = edges_from_blocks(made) if kind == "edge" else made
        self._keep(key, made)
        return made

    def _keep(self, key: Hashable, made: Blocks | Edges) -> None:
        size = sum(tensor.nbytes for tensor in made.tensors())
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

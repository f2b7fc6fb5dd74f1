"""Short names for nodes, from the module they belong to: `blocks.0.attn.qkv` → `h0_qkv`."""

import keyword
import operator
import re
from collections.abc import Iterable

from torch.fx import Node

from surgery.inspection.blocks import Blocks
from surgery.inspection.ops import op_name
from surgery.inspection.owners import inside
from surgery.inspection.roles import roles
from surgery.inspection.visible import Visible


def node_names(seen: Visible, owner: dict[Node, str], blocks: Blocks) -> dict[Node, str]:
    """A name, unlike any other, for every visible node.

    The last result of a module carries the module's name, what goes into attention is q, k and v, anything else
    is called after its operator; nodes of a repeated block begin with the block's letter and index.
    """
    modules = _ModuleNames({owner[node] for node in seen.nodes}, blocks, {op_name(node.target) for node in seen.nodes})
    results = _results(seen, owner)
    uses = roles(seen)
    names: dict[Node, str] = {}
    taken: set[str] = set()
    for node in seen.nodes:
        if node in seen.inlined:
            continue
        prefix = modules.prefix(owner[node])
        own = modules.own(owner[node]) if node in results else ""
        wished = own or uses.get(node) or _plain(node, names, prefix)
        if node.op == "placeholder":
            wished = str(node.target)
        elif prefix:
            wished = f"{prefix}_{wished}" if own or node not in results else prefix
        alone = prefix or (own and own not in modules.words) or node in uses or node.op == "placeholder"
        alone = alone or node.target is operator.getitem
        names[node] = _identifier(_unique(re.sub(r"\W+", "_", wished), taken, "" if alone else "_1"))
    return names


class _ModuleNames:
    """For a module path: the shortest tail of it that no other module shares, and the letter of its block.

    `words` are operators of the graph: a node called like one would hide it.
    """

    def __init__(self, paths: set[str], blocks: Blocks, words: set[str]):
        self.blocks = blocks
        self.words = words
        self.locals = {path: self._local(path) for path in paths}
        self.all = {*self.locals.values()}
        self.tails: dict[tuple[bool, str], str] = {}

    def _local(self, path: str) -> tuple[bool, str]:
        """Whether the path lies in a block, and the path from there on."""
        block = self.blocks.of(path)
        if not block:
            return False, path
        return True, path[len(f"{block[0]}.{block[1]}") :].lstrip(".")

    def prefix(self, path: str) -> str:
        block = self.blocks.of(path)
        return f"{self.blocks.prefixes[block[0]]}{block[1]}" if block else ""

    def own(self, path: str) -> str:
        local = self.locals[path]
        if local not in self.tails:
            self.tails[local] = self._tail(*local)
        return self.tails[local]

    def _tail(self, in_block: bool, path: str) -> str:
        parts = path.split(".")
        others = [other for same, other in self.all if same == in_block and other != path]
        for count in range(1, len(parts)):
            tail = ".".join(parts[-count:])
            hides = not in_block and tail in self.words
            shared = any(f".{other}".endswith(f".{tail}") for other in others)
            if not (hides or shared or tail[:1].isdigit()):
                return tail
        return path


def _results(seen: Visible, owner: dict[Node, str]) -> dict[Node, bool]:
    """The last node of each run of a module that somebody outside of it reads."""
    last: dict[str, Node] = {}
    done: dict[Node, bool] = {}
    for node in seen.nodes:
        if node.op == "call_function" and owner[node] and _leaves(node, owner, seen):
            last[owner[node]] = node
            if _is_leaf_call(node, owner):
                done[node] = True
    return {**done, **dict.fromkeys(last.values(), True)}


def _is_leaf_call(node: Node, owner: dict[Node, str]) -> bool:
    """A module that is one operator may run several times; each run is its result."""
    return all(owner[source] != owner[node] for source in node.all_input_nodes if source.op == "call_function")


def _leaves(node: Node, owner: dict[Node, str], seen: Visible) -> bool:
    """Whether a user, through hidden nodes, lies outside the module."""
    waiting = list(node.users)
    while waiting:
        user = waiting.pop()
        if user in seen.stands_for and seen.resolve(user) is node:
            waiting.extend(user.users)
        elif user.op == "output" or not inside(owner[user], owner[node]):
            return True
    return False


def _plain(node: Node, names: dict[Node, str], prefix: str) -> str:
    """Called after the operator; a part of a tuple after the tuple."""
    if node.target is operator.getitem and node.args[0] in names:
        return f"{names[node.args[0]].removeprefix(prefix).strip('_')}_{node.args[1]}"
    return op_name(node.target)


def _identifier(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) else f"_{name}" if name[:1].isdigit() else name


def _unique(wished: str, taken: set[str], first: str = "") -> str:
    """The wished name, or with the lowest number that makes it one of its kind; an operator's own is numbered from 1."""
    name, count = wished + first, 2
    while name in taken:
        name, count = f"{wished}_{count}", count + 1
    taken.add(name)
    return name


def tuple_parts(node: Node, seen: Iterable[Node]) -> list[Node]:
    """The visible `getitem`s of a node that returns a tuple."""
    return [user for user in seen if user.target is operator.getitem and user.args[0] is node]

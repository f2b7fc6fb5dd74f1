"""The graph of one step: new tokens through the stream, keys and values kept, the frame handed in."""

from dataclasses import dataclass

from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from surgery.anatomy.graphs import aten, is_layer, is_op
from surgery.generation import session
from surgery.generation.faults import unfit
from surgery.generation.parts import Parts
from surgery.generation.sites import Cached, Kept, argument, cached_sites, is_call

ROWS, COLUMNS = "rows", "columns"
TURNS = (aten.transpose, aten.permute, aten.t, aten.flip, aten.cat, aten.stack)
SIMPLE = (aten.to, aten._to_copy, aten.mul, aten.div, aten.tanh, aten.clone, aten.contiguous)
"""What may stand between the last layer and the logits for that layer to be given the last token alone."""


@dataclass(frozen=True)
class Cut:
    """How a tensor of the frame is handed in: along each of these axes the new rows, or the columns so far."""

    node: Node
    axes: tuple[tuple[int, str], ...]


@dataclass(frozen=True, eq=False)
class Step:
    """`module(memory, tokens, *frame)` gives logits; `cuts` say how each of the frame's tensors is handed in, and
    `sizes` are the whole numbers that come with it, behind them."""

    module: GraphModule
    cuts: tuple[Cut, ...]
    sizes: tuple[Node, ...]


def step_of(parts: Parts) -> Step:
    """before  logits [B, S, V] of tokens [B, S]   after  logits [B, n, V] of n new tokens, keys and values kept

    refuses  a stream that is not row by row outside attention, as far as shapes tell; the proof looks at values
    """
    return _Builder(parts, cached_sites(parts)).build()


class _Builder:
    def __init__(self, parts: Parts, sites: tuple[Cached, ...]) -> None:
        self.parts, self.sites = parts, {site.call: site for site in sites}
        self.graph = Graph()
        self.memory = self.graph.placeholder("memory")
        self.made: dict[Node, Node] = {parts.tokens: self.graph.placeholder("tokens")}
        self.handed: dict[Cut | Node, Node] = {}
        self.total: Node | None = None
        self.long: dict[Node, Node] = {}
        self.kept = 0
        self.projection = _projection(parts)

    def build(self) -> Step:
        wanted = self._needed()
        for node in self.parts.graph_module.graph.nodes:
            if node in wanted and node in self.parts.stream and node is not self.parts.tokens:
                self.made[node] = self._read(self.sites[node]) if node in self.sites else self._copy(node)
        self.graph.output(self.made[self.parts.logits])
        cuts = tuple(each for each in self.handed if isinstance(each, Cut))
        sizes = tuple(each for each in self.handed if isinstance(each, Node))
        self._declare(cuts, sizes)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return Step(GraphModule(self.parts.graph_module, self.graph, class_name="Step"), cuts, sizes)

    def _needed(self) -> set[Node]:
        """What the logits are computed from, in-place edits of it included."""
        order = list(self.parts.graph_module.graph.nodes)
        wanted = {self.parts.logits}
        for node in reversed(order):
            edits = node.op == "call_function" and getattr(getattr(node.target, "_schema", None), "is_mutable", False)
            if node in wanted or (edits and node in self.parts.stream):
                wanted.add(node)
                wanted.update(node.all_input_nodes)
        return wanted

    def _declare(self, cuts: tuple[Cut, ...], sizes: tuple[Node, ...]) -> None:
        """Inputs stand in one order: the frame's tensors, then its sizes."""
        first = self.made[self.parts.tokens]
        for place, each in reversed(list(enumerate([*cuts, *sizes]))):
            stand_in = self.handed[each]
            with self.graph.inserting_after(first):
                declared = self.graph.placeholder(f"frame_{place}")
            stand_in.replace_all_uses_with(declared)
            self.graph.erase_node(stand_in)

    def _hand_in(self, key: Cut | Node) -> Node:
        if key not in self.handed:
            self.handed[key] = self.graph.create_node("placeholder", f"later_{len(self.handed)}")
        return self.handed[key]

    def _copy(self, node: Node) -> Node:
        long = self._long(node)
        copied = self.graph.node_copy(node, lambda source: self._operand(source, node))
        copied.meta = {}
        for (place, axis), size in long.items():
            sizes = [size if index == axis else each for index, each in enumerate(copied.args[place])]
            copied.args = (*copied.args[:place], sizes, *copied.args[place + 1 :])
        if node is self.projection:
            with self.graph.inserting_before(copied):
                place = 1 if is_op(node, aten.addmm) else 0
                last = self.graph.call_function(session.last_row, (self.memory, copied.args[place]))
            copied.args = (*copied.args[:place], last, *copied.args[place + 1 :])
        return copied

    def _operand(self, source: Node, user: Node) -> Node:
        if source in self.made:
            return self.made[source]
        if source in self.parts.sizes:
            return self._size(source, long=False)
        if source.op == "get_attr":
            self.made[source] = self.graph.get_attr(source.target)
            return self.made[source]
        if not self.parts.rows(source):
            self._refuse_grown(source, user)
            return self._hand_in(Cut(source, ()))
        return self._hand_in(self._aligned(source, user))

    def _refuse_grown(self, source: Node, user: Node) -> None:
        if any(self.parts.grows(size) for size in self.parts.shape(source)):
            raise unfit(f"its positions are folded into another axis, read by `{user.name}`", source)

    def _aligned(self, source: Node, user: Node) -> Cut:
        """A frame's tensor meets a stream's: axes of tokens stand under each other, counted from the right."""
        if is_call(user):
            return self._mask(source)
        ahead = len(self.parts.shape(user)) - len(self.parts.shape(source))
        roles = self._roles(user)
        axes = tuple((axis, roles.get(ahead + axis, "")) for axis in self.parts.rows(source))
        if all(role for _, role in axes):
            return Cut(source, axes)
        raise unfit(f"`{user.name}` joins positions and tokens in a way that is not row by row", user)

    def _roles(self, node: Node) -> dict[int, str]:
        """Axis → what it counts: the new tokens, or behind a product of queries and keys all tokens so far."""
        rows = self.parts.rows(node)
        return dict(zip(rows, (ROWS, COLUMNS), strict=False)) if len(rows) < 3 else {}

    def _long(self, node: Node) -> dict[tuple[int, int], Node]:
        """(argument, place in it) → a size of an axis that counts keys, which is that of all keys."""
        keys = [axis for axis, role in self._roles(node).items() if role == COLUMNS]
        if keys and is_op(node, *TURNS):
            raise unfit(f"`{node.name}` turns attention scores around", node)
        lists = [(place, given) for place, given in enumerate(node.args) if isinstance(given, list | tuple)]
        return {
            (place, axis): self._size(given[axis], long=True)
            for place, given in lists
            for axis in keys
            if axis < len(given) and given[axis] in self.parts.sizes
        }

    def _mask(self, source: Node) -> Cut:
        """Of an attention call: a mask [.., Sq, Sk], or what is known of keys [B, Sk]."""
        rank = len(self.parts.shape(source))
        roles = {rank - 2: ROWS, rank - 1: COLUMNS} if rank > 2 or len(self.parts.rows(source)) > 1 else {1: COLUMNS}
        return Cut(source, tuple((axis, roles[axis]) for axis in self.parts.rows(source)))

    def _size(self, node: Node, *, long: bool) -> Node:
        """A whole number, recomputed for the new tokens, or (`long`) for all there are."""
        table = self.long if long else self.made
        if node in table:
            return table[node]
        if is_op(node, aten.sym_size):
            size = self.parts.shape(node.args[0])[node.args[1]]
            if size == self.parts.length:
                table[node] = self._count(long)
            elif node.args[0] in self.parts.stream:
                table[node] = self.graph.call_function(node.target, (self.made[node.args[0]], node.args[1]))
            else:
                table[node] = self._hand_in(node)
        else:
            table[node] = self.graph.node_copy(node, lambda source: self._size(source, long=long))
            table[node].meta = {}
        return table[node]

    def _count(self, long: bool) -> Node:
        if not long:
            return self.graph.call_function(aten.sym_size.int, (self.made[self.parts.tokens], 1))
        if self.total is None:
            self.total = self.graph.call_function(session.total, (self.memory,))
        return self.total

    def _read(self, site: Cached) -> Node:
        """A call that reads keys or values: those kept stand in for the new ones."""
        latest = {place: self._kept(kept) for place, kept in site.kept.items()}
        if is_op(site.call, aten.scaled_dot_product_attention):
            return self._attend(site, latest[1], latest[2])
        args = [
            latest[place] if place in latest else map_arg(given, lambda source: self._operand(source, site.call))
            for place, given in enumerate(site.call.args)
        ]
        return self.graph.call_function(site.call.target, tuple(args), dict(site.call.kwargs))

    def _attend(self, site: Cached, key: Node, value: Node) -> Node:
        query = self._operand(site.call.args[0], site.call)
        mask = argument(site.call, 3, "attn_mask")
        if mask is None:
            mask = self.graph.call_function(session.causal, (self.memory, query))
        else:
            mask = self._operand(mask, site.call)
        named = {"attn_mask", "dropout_p", "is_causal"}
        options = {name: given for name, given in site.call.kwargs.items() if name not in named}
        options = map_arg(options, lambda source: self._operand(source, site.call))
        dropout = argument(site.call, 4, "dropout_p") or 0.0
        return self.graph.call_function(site.call.target, (query, key, value, mask, dropout, False), options)

    def _kept(self, kept: Kept) -> Node:
        arguments = (self.memory, self.kept, kept.axis, self.made[kept.node])
        self.kept += 1
        latest = self.graph.call_function(session.keep, arguments)
        source = kept.node
        for node in kept.path:
            latest = self._moved(node, source, latest)
            source = node
        return latest

    def _moved(self, node: Node, source: Node, latest: Node) -> Node:
        moved = self.graph.node_copy(node, lambda each: latest if each is source else self._size(each, long=True))
        moved.meta = {}
        return moved


def _projection(parts: Parts) -> Node | None:
    """The layer that makes the logits, if only element by element is computed behind it."""
    node = parts.logits
    for _ in range(6):
        if is_layer(node):
            hidden = node.args[1 if is_op(node, aten.addmm) else 0]
            return node if parts.rows(hidden) == (1,) and len(parts.shape(hidden)) == 3 else None
        sources = node.all_input_nodes
        if len(sources) != 1 or sources[0] not in parts.stream or not is_op(node, *SIMPLE):
            return None
        node = sources[0]
    return None

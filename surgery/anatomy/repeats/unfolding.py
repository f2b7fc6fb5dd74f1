"""The graph of a model whose equal blocks were traced once, made whole."""

import operator
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn, Tensor
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from surgery.anatomy.graphs import attribute
from surgery.anatomy.repeats.blocks import Block, tensors_of
from surgery.anatomy.repeats.tracing import AGAIN, MARK, Record, SYMBOLS, Tracing, Unlike

NUMBERED = re.compile(r"(.*?)(?:_(\d+))?")


@dataclass
class _Span:
    """The nodes of a block that was traced, as they stand between its marks."""

    record: Record | None
    given: list[Node]
    nodes: list[Node] = field(default_factory=list)
    made: list[Node] | None = None
    checked: bool = False

    def check(self) -> None:
        """Raise `Unlike` unless every node can be repeated and no other tensor leaves than those made."""
        if self.checked:
            return
        inside = {*self.nodes}
        leaving = {*self.made}
        for node in self.nodes:
            _refuse(node)
            if node not in leaving and not _is_symbol(node):
                if any(user not in inside and user.target is not MARK for user in node.users):
                    raise Unlike(f"{node} leaves its block")
        if len({*self.given}) < len(self.given) or not leaving <= inside:
            raise Unlike("its results are not its own")
        self.checked = True


def _refuse(node: Node) -> None:
    """Raise `Unlike` for a node that is more than a call of an operator."""
    plain = isinstance(node.target, OpOverload) or node.target is operator.getitem
    if not (plain or _is_symbol(node) or node.op == "get_attr"):
        raise Unlike(f"{node} is {node.target}")
    if node.meta.get("unbacked_bindings") or free_unbacked_symbols(node.meta.get("val")):
        raise Unlike(f"{node} has sizes that depend on data")


def _is_symbol(node: Node) -> bool:
    return isinstance(node.meta.get("val"), SYMBOLS)


class Unfolding:
    """Puts, in place, the nodes of the block that was traced wherever one is to be repeated."""

    def __init__(self, tracing: Tracing, graph_module: GraphModule):
        self.tracing, self.graph_module, self.graph = tracing, graph_module, graph_module.graph
        self.stored = dict(tensors_of(dict(tracing.model.named_modules())))
        self.nodes = {node.target: node for node in self.graph.nodes if node.op == "get_attr"}
        self._show()
        named = {id(self.stored[target]): node for target, node in self.nodes.items() if target in self.stored}
        self.node_of = {name: named.get(id(tensor)) for name, tensor in self.stored.items()} | self.nodes
        self.constant: Node | None = None
        """The last one of those of blocks."""

    def _show(self) -> None:
        """Let the graph read the tensors that were hidden, each where it stands among all of them."""
        stand_in = {
            f"{block.name}.{name}": f"{self.tracing.blocks[like].name}.{name}"
            for place, like in self.tracing.like.items()
            for block in (self.tracing.blocks[place],)
            for name, tensor in block.tensors.items()
            if tensor is not None
        }
        before: Node | None = None
        for name, tensor, shelf in _shelved(self.tracing.model):
            if name in stand_in and name not in self.nodes:
                _store(self.graph_module, name, tensor, shelf)
                first = next(iter(self.graph.nodes))
                with self.graph.inserting_after(before) if before else self.graph.inserting_before(first):
                    self.nodes[name] = self.graph.get_attr(name)
                meta = self.nodes[stand_in[name]].meta
                self.nodes[name].meta = {key: meta[key] for key in meta if key != "from_node"}
            before = self.nodes.get(name, before)

    def run(self) -> GraphModule:
        inner = [each for each in self.graph_module.modules() if isinstance(each, GraphModule)][1:]
        if any(node.target in (MARK, AGAIN) for each in inner for node in each.graph.nodes):
            raise Unlike("blocks lie in a graph of their own")
        spans: dict[int, _Span] = {}
        opened: list[_Span] = []
        for node in list(self.graph.nodes):
            if node.target is MARK:
                tensors, number, enters = node.args
                if enters:
                    spans[number] = _Span(self.tracing.records[number], tensors)
                    opened.append(spans[number])
                else:
                    opened.remove(spans[number])
                    spans[number].made = tensors
            elif node.target is AGAIN:
                copies = self._repeated(spans[node.args[1]], node)
                for span in opened:
                    span.nodes += copies
            elif not node._erased:
                for span in opened:
                    span.nodes.append(node)
        for node in list(self.graph.nodes):
            node.meta.pop("tensor_meta", None)
            if node.target is MARK:
                self.graph.erase_node(node)
        _name_in_order(self.graph)
        return self.graph_module

    def _repeated(self, span: _Span, again: Node) -> list[Node]:
        """The nodes of a span over another block's tensors, in place of `again`."""
        span.check()
        given, _, place = again.args
        source, block = span.record.block, self.tracing.blocks[place]
        found = dict(zip(span.given, given, strict=True))
        copies = []
        for node in span.nodes:
            if node.op == "get_attr" or _is_symbol(node) or not _reads_tensors(node) and node.meta.get("val") is None:
                continue
            for each in node.all_input_nodes:
                if each not in found:
                    found[each] = self._counterpart(each, source, block)
            with self.graph.inserting_before(again):
                found[node] = self.graph.node_copy(node, found.__getitem__)
            found[node].meta["nn_module_stack"] = _moved(node.meta.get("nn_module_stack"), source.name, block.name)
            copies.append(found[node])
        for user in list(again.users):
            user.replace_all_uses_with(found[span.made[user.args[1]]])
            self.graph.erase_node(user)
        self.graph.erase_node(again)
        return copies

    def _counterpart(self, node: Node, source: Block, block: Block) -> Node:
        """What stands in `block` for a node that the nodes of `source` read and that is not theirs."""
        if _is_symbol(node):
            return node
        if node.op != "get_attr":
            raise Unlike(f"{node} comes from elsewhere")
        if node.target not in self.stored:
            return self._constant(node, source, block)
        names = [name for name, each in source.tensors.items() if each is self.stored[node.target]]
        names.sort(key=lambda name: f"{source.name}.{name}" != node.target)
        other = self.node_of.get(f"{block.name}.{names[0]}") if names else None
        if other is None:
            raise Unlike(f"{node} is not the block's own")
        return other

    def _constant(self, node: Node, source: Block, block: Block) -> Node:
        """A number that the model's code made a tensor of, for another block: its own where the first one's is."""
        made = attribute(self.graph_module, node.target)
        if not isinstance(made, Tensor):
            raise Unlike(f"{node} is a {type(made).__name__}")
        if not node.target.startswith(f"{source.name}."):
            return node
        name = block.name + node.target[len(source.name) :]
        if name not in self.nodes:
            _store(self.graph_module, name, made.clone(), "constant")
            if self.constant is None:
                self.constant = next(each for each in reversed(self.nodes.values()) if self._is_constant(each, source))
            with self.graph.inserting_after(self.constant):
                self.constant = self.nodes[name] = self.graph.get_attr(name)
            self.constant.meta = dict(node.meta)
        return self.nodes[name]

    def _is_constant(self, node: Node, block: Block) -> bool:
        return node.target not in self.stored and node.target.startswith(f"{block.name}.")


def _shelved(model: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """Every name of a tensor, the tensor and where it is kept, in the order in which graphs read them."""
    modules = dict(model.named_modules())
    for name, tensor in model.named_parameters(remove_duplicate=False):
        yield name, tensor, "parameter"
    for name, tensor in model.named_buffers(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        yield name, tensor, "passing" if leaf in modules[path]._non_persistent_buffers_set else "buffer"


def _store(graph_module: GraphModule, target: str, tensor: Tensor, shelf: str) -> None:
    """Put a tensor at a dotted path, with the modules that lead there. shelf: "parameter", "buffer", "passing" for a
    buffer that is not saved, "constant"."""
    path, _, name = target.rpartition(".")
    owner: nn.Module = graph_module
    for part in path.split("."):
        if not hasattr(owner, part):
            setattr(owner, part, nn.Module())
        owner = getattr(owner, part)
    if shelf == "constant":
        setattr(owner, name, tensor)
    elif shelf == "parameter":
        owner.register_parameter(name, tensor)
    else:
        owner.register_buffer(name, tensor, persistent=shelf == "buffer")


def _name_in_order(graph: Graph) -> None:
    """Let numbers in names rise along the graph, as they do when every block is traced."""
    named: dict[str, list[tuple[int, Node]]] = {}
    for node in graph.nodes:
        if node.op == "call_function":
            stem, number = NUMBERED.fullmatch(node.name).groups()
            named.setdefault(stem, []).append((int(number or -1), node))
    for nodes in named.values():
        names = [node.name for _, node in sorted(nodes, key=lambda pair: pair[0])]
        for (_, node), name in zip(nodes, names, strict=True):
            node.name = name


def _reads_tensors(node: Node) -> bool:
    return not all(map(_is_symbol, node.all_input_nodes))


def _moved(stack: dict | None, source: str, block: str) -> dict:
    """A module stack with another block in place of `source`."""
    moved = {}
    for key, (path, owner) in (stack or {}).items():
        if f"{path}.".startswith(f"{source}."):
            key, path = key.replace(source, block, 1), block + path[len(source) :]
        moved[key] = path, owner
    return moved

"""A vocabulary, everywhere it appears: the table its ids are looked up in, the head that scores it, ids, scores."""

from dataclasses import dataclass

from torch.fx import GraphModule, Node

from surgery.anatomy.dimension import Obstacle, describe, is_size_read, trace_dimension
from surgery.anatomy.graphs import aten, bias_of, calls, is_op, shape, tensor_ancestors, value, weight_of, width
from surgery.anatomy.sites.embedding import Embedding

MOVES = (
    aten.view, aten.reshape, aten.to, aten.slice, aten.unsqueeze, aten.squeeze, aten.clone, aten.contiguous,
    aten.expand, aten.alias, aten.flatten, aten._to_copy, aten.detach,
)  # fmt: skip
"""What hands ids on as they are."""
LIKE = (aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.new_zeros, aten.new_ones, aten.new_full)
"""What takes their shape alone."""
COMPARES = (aten.eq, aten.ne)


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A table of `rows` token embeddings and what is coupled with them.

    lookups      embedding calls, the ids in their second argument; `inputs` the placeholders those come from
    weights      (tensor, axis) that lose rows: the table, heads' weights and biases, what is added to the scores
    scores       nodes that carry the vocabulary last, from the heads to the outputs
    outputs      the places of scores among the model's outputs, laid flat
    comparisons  ids compared with a number: `ids != padding`
    unclear      where ids are read as numbers otherwise: such a model cannot be fed new ids
    """

    table: str
    rows: int
    lookups: tuple[Node, ...]
    inputs: tuple[Node, ...]
    weights: tuple[tuple[str, int], ...]
    scores: tuple[Node, ...]
    outputs: tuple[int, ...]
    comparisons: tuple[Node, ...]
    unclear: tuple[Obstacle, ...]


def vocabulary_of(graph_module: GraphModule, site: Embedding) -> Vocabulary | Obstacle:
    """The vocabulary of a token table, or the place and the reason why it cannot lose rows."""
    lookups, tied, foreign = _readers(graph_module, site.table)
    if foreign is not None:
        return Obstacle(foreign, f"{describe(foreign)} reads `{site.table}` as well")
    heads = tied or _untied(graph_module, site.rows)
    dimensions = [trace_dimension(head) for head in heads]
    for found in dimensions:
        blocking = [one for one in found.obstacles if one.node.op != "output"] + [
            Obstacle(linear, f"{describe(linear)} reads the scores") for linear in found.consumers
        ]
        if blocking:
            return blocking[0]
    scores = tuple(dict.fromkeys(node for found in dimensions for node in found.nodes))
    outputs = _outputs(graph_module)
    loose = [node for node in outputs if node not in scores and width(node) == site.rows]
    if loose:
        return Obstacle(loose[0], f"an output of {site.rows} scores that no linear layer over the vocabulary makes")
    inputs, comparisons, unclear = _ids(lookups)
    return Vocabulary(
        table=site.table,
        rows=site.rows,
        lookups=tuple(lookups),
        inputs=inputs,
        weights=tuple(dict.fromkeys([(site.table, 0), *(pair for one in dimensions for pair in _cut(one.producers))])),
        scores=scores,
        outputs=tuple(place for place, node in enumerate(outputs) if node in scores),
        comparisons=comparisons,
        unclear=unclear,
    )


def _readers(graph_module: GraphModule, table: str) -> tuple[list[Node], list[Node], Node | None]:
    """Look-ups in a table, linears whose weight it is, and the first reader that is neither."""
    lookups, heads, foreign = [], [], None
    for weight in graph_module.graph.nodes:
        if weight.op != "get_attr" or weight.target != table:
            continue
        for user in weight.users:
            if is_op(user, aten.embedding) and user.args[0] is weight and user.args[1] is not weight:
                lookups.append(user)
            elif is_op(user, aten.linear) and user.args[1] is weight:
                heads.append(user)
            else:
                foreign = foreign or user
    return sorted(lookups), sorted(heads), foreign


def _untied(graph_module: GraphModule, rows: int) -> list[Node]:
    """Linears that make as many scores as there are tokens, for the outputs and nothing else."""
    found = []
    for linear in calls(graph_module, aten.linear):
        weight = weight_of(linear)
        if weight is not None and shape(weight)[0] == rows:
            ends = {user for node in trace_dimension(linear).nodes for user in node.users}
            found += [linear] if any(user.op == "output" for user in ends) else []
    return found


def _cut(producers: tuple[Node, ...]) -> list[tuple[str, int]]:
    """The tensors that make a vocabulary axis, and which of their axes it is."""
    found = []
    for node in producers:
        if node.op == "get_attr":
            found.append((node.target, len(shape(node)) - 1))
        else:
            found += [(weight_of(node).target, 0), *([(bias_of(node).target, 0)] if bias_of(node) is not None else [])]
    return found


def _outputs(graph_module: GraphModule) -> list[Node]:
    output = next(node for node in reversed(graph_module.graph.nodes) if node.op == "output")
    flat: list = []
    todo = [output.args[0]]
    while todo:
        one = todo.pop(0)
        if isinstance(one, list | tuple):
            todo = [*one, *todo]
        elif isinstance(one, dict):
            todo = [*one.values(), *todo]
        else:
            flat.append(one)
    return [one if isinstance(one, Node) else output for one in flat]


def _ids(lookups: list[Node]) -> tuple[tuple[Node, ...], tuple[Node, ...], tuple[Obstacle, ...]]:
    """Where ids come from, where they are compared with a number, and where they are read in a way not understood."""
    behind = {node for one in lookups for node in tensor_ancestors(one.args[1])}
    inputs = sorted(node for node in behind if node.op == "placeholder" and _whole(node))
    reached, comparisons, unclear = set(), [], []
    seen, todo = set(), list(inputs)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for user in node.users:
            if user in lookups and user.args[1] is node:
                reached.add(user)
            elif is_op(user, *MOVES):
                todo.append(user)
            elif is_op(user, *COMPARES) and isinstance(user.args[1], int):
                comparisons.append(user)
            elif not (is_size_read(user) or is_op(user, *LIKE)):
                unclear.append(Obstacle(user, f"{describe(user)} reads the ids"))
    unclear += [Obstacle(one, "its ids are made by the model") for one in lookups if one not in reached]
    return tuple(inputs), tuple(sorted(set(comparisons))), tuple(unclear)


def _whole(node: Node) -> bool:
    """Whether an input holds whole numbers."""
    fake = value(node)
    return hasattr(fake, "dtype") and not fake.is_floating_point() and fake.dtype.itemsize > 1

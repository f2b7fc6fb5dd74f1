"""Which module of the original model a node came from."""

from collections.abc import Iterable

from torch.fx import Graph, Node

CONTAINERS = ("torch.nn.modules.container.", "torch.nn.modules.module.")
PLACEHOLDER_PATH = "_empty_nn_module_stack_from_metadata_hook"


def module_stack(node: Node) -> tuple[tuple[str, str], ...]:
    """Module path and class name, outermost first; the path of the model itself is empty."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = ((entry[0], _class_name(entry[1])) for entry in stack.values())
    return tuple((path, kind) for path, kind in entries if path != PLACEHOLDER_PATH)


def _class_name(kind: type | str) -> str:
    return kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def class_names(graph: Graph) -> dict[str, str]:
    """Class name, without its package, of every module that ran: {"blocks.0": "Block"}."""
    return {path: kind.rsplit(".", 1)[-1] for node in graph.nodes for path, kind in module_stack(node)}


def owners(graph: Graph) -> dict[Node, str]:
    """The owning module's path of every node.

    A node that a pass made without saying where belongs to the module of its weights, else of its first input.
    """
    found: dict[Node, str] = {}
    for node in graph.nodes:
        stack = module_stack(node)
        found[node] = stack[-1][0] if stack else _guess(node, found)
    return found


def _guess(node: Node, found: dict[Node, str]) -> str:
    if node.op == "get_attr":
        return str(node.target).rpartition(".")[0]
    if node.op != "call_function":
        return ""
    weights = [source for source in node.all_input_nodes if source.op == "get_attr"]
    sources = weights or [source for source in node.all_input_nodes if source.op == "call_function"]
    return found[sources[0]] if sources else ""


def inside(path: str, module: str) -> bool:
    """Whether a path is the module or lies in it; everything lies in the model itself."""
    return not module or path == module or path.startswith(module + ".")


def parents(path: str) -> Iterable[str]:
    """The path and every module above it, nearest first, without the model itself."""
    while path:
        yield path
        path = path.rpartition(".")[0]


class Headings:
    """The module a line is printed under: its owner, or for a small layer such as a Linear the module that calls it."""

    SMALL = 4

    def __init__(self, nodes: Iterable[Node], owner: dict[Node, str]):
        lines: dict[str, int] = {}
        self._caller: dict[str, str] = {}
        library: set[str] = set()
        for node in nodes:
            path = owner[node]
            stack = module_stack(node)
            lines[path] = lines.get(path, 0) + 1
            self._caller.setdefault(path, stack[-2][0] if len(stack) > 1 else path.rpartition(".")[0])
            if stack and stack[-1][1].startswith("torch.nn.modules.") and not stack[-1][1].startswith(CONTAINERS):
                library.add(path)
        above = {up for path in lines for up in list(parents(path))[1:]}
        self._small = {path for path in lines if path in library or (lines[path] <= self.SMALL and path not in above)}

    def of(self, path: str) -> str:
        """The heading for nodes of a module."""
        return self._caller.get(path, "") if path in self._small else path

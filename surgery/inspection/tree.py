"""The modules of a graph as a tree: tensors, counts, and the clause behind whatever was touched."""

from dataclasses import dataclass, field

from rich.markup import escape
from rich.tree import Tree
from torch import Tensor
from torch.fx import GraphModule

from surgery.inspection.code import mark_text
from surgery.inspection.listing import Listing, Statement
from surgery.inspection.owners import inside, parents
from surgery.inspection.quantities import bytes_text, count_text, weigh
from surgery.inspection.repeats import Fold, Repeats
from surgery.inspection.select import select
from surgery.inspection.tensors import parameters
from surgery.inspection.values import dtype_name, shape_text


@dataclass
class Branch:
    """A module: its own tensors and clauses, and the modules in it."""

    path: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)
    children: dict[str, "Branch"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def at(self, path: str) -> "Branch":
        """The branch of a dotted path, made where it is missing."""
        branch = self
        for up in reversed(list(parents(path))):
            branch = branch.children.setdefault(up.rpartition(".")[2], Branch(up))
        return branch

    def everything(self) -> list[Tensor]:
        """The tensors of the module and of those in it."""
        return [*self.tensors.values(), *(tensor for child in self.children.values() for tensor in child.everything())]

    def touched(self) -> int:
        """Nodes in here that a clause touched."""
        return sum(self.marks.values()) + sum(child.touched() for child in self.children.values())


def tree(graph_module: GraphModule, *, full: bool = False, touched: bool = False, site: str | None = None) -> Tree:
    """The module tree with parameter shapes, counts, and the clause behind every touched node.

    Where anything was touched, untouched modules are one line; blocks that do the same as an earlier one always are,
    unless `full`. `touched` leaves untouched modules out; `site` shows a module only (a dotted path, `*` for any
    part of it). Raises SurgeryError S361 when no node lies in `site`.
    """
    listing = Listing(graph_module)
    shown = select(listing, site=site)
    root = _grow(listing, shown)
    folds = Repeats(listing, () if full else shown).folds
    printer = _Printer(listing, folds, root.touched() > 0 and not full, touched)
    top = Tree(printer.title(root))
    printer.fill(top, root)
    return top


def _grow(listing: Listing, shown: list[Statement]) -> Branch:
    roots = {listing.owner[statement.node] for statement in shown}
    root = Branch("")
    for statement in shown:
        marks = root.at(listing.owner[statement.node]).marks
        for mark in statement.marks:
            marks[mark_text(mark)] = marks.get(mark_text(mark), 0) + 1
    for name, tensor in parameters(listing.module).items():
        owner, _, last = name.rpartition(".")
        if any(inside(owner, path) for path in roots):
            root.at(owner).tensors[last] = tensor
    return root


class _Printer:
    def __init__(self, listing: Listing, folds: list[Fold], brief: bool, only_touched: bool):
        self.classes = listing.classes
        self.brief = brief
        self.only_touched = only_touched
        self.folded = {f"{fold.path}.{index}": fold for fold in folds for index in range(fold.first, fold.last + 1)}

    def title(self, root: Branch) -> str:
        count, size = weigh(root.everything())
        touched = f" · [yellow]✂ {count_text(root.touched(), 'node')} touched[/]" if root.touched() else ""
        kind = self.classes.get("", "graph")
        return f"[bold]{kind}[/]  {count_text(count, 'parameter')} · {bytes_text(size)}{touched}{_clauses(root)}"

    def fill(self, parent: Tree, branch: Branch) -> None:
        self._tensors(parent, branch)
        for child in branch.children.values():
            fold = self.folded.get(child.path)
            if fold and child.path != f"{fold.path}.{fold.first}":
                continue
            if fold:
                parent.add(self._fold(fold))
            elif child.touched() or not self.only_touched:
                node = parent.add(self._label(child))
                if child.touched() or not self.brief:
                    self.fill(node, child)

    def _tensors(self, parent: Tree, branch: Branch) -> None:
        if branch.path:
            return
        for name, tensor in branch.tensors.items():
            parent.add(f"{escape(name)}  {_shape(tensor)}")

    def _label(self, branch: Branch) -> str:
        """`1 Linear  weight [288, 48]  bias [288] · 14,112`, or the module with its total."""
        kind = self.classes.get(branch.path, "")
        parts = [f"[bold]{escape(branch.name)}[/]" + (f" [cyan]{escape(kind)}[/]" if kind else "")]
        parts += [f"{escape(name)} {_shape(tensor)}" for name, tensor in branch.tensors.items()]
        count, _ = weigh(branch.everything())
        return "  ".join(parts) + (f"  [dim]{count:,}[/]" if count else "") + _clauses(branch)

    def _fold(self, fold: Fold) -> str:
        span = f"{fold.first}" + (f" … {fold.last}" if fold.last != fold.first else "")
        also = ", [yellow]✂ included[/]" if fold.touched else ""
        return f"[bold]{span}[/] [dim]same as {fold.like}[/]{also}"


def _clauses(branch: Branch) -> str:
    """A line for every clause that touched the module's own nodes."""
    times = {mark: f" × {count}" if count > 1 else "" for mark, count in branch.marks.items()}
    return "".join(f"\n[yellow]✂ {escape(mark)}{often}[/]" for mark, often in times.items())


def _shape(tensor: Tensor) -> str:
    return escape(dtype_name(tensor.dtype) + shape_text(tensor.shape))

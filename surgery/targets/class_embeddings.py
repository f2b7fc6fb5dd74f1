"""`prune … of class embeddings`: the conditional vector c = time + class loses coordinates.

Shared (one support for every class and timestep) it is compacted: the class table loses columns, the time branch
rows, every modulation layer columns. Per-vector, or in a window of sampling steps, it can only be masked.
Pruning after Pham et al., arXiv:2602.21596; the shared support and its compensation are this project's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch
from torch.fx import GraphModule

from surgery.anatomy.graphs import aten, attribute, bias_of, is_op, shape, weight_of
from surgery.anatomy.site import Anatomy
from surgery.anatomy.sites.conditioning import Conditioning
from surgery.diagnostics import RefusalError
from surgery.passes.cut_dimension import CutDimension
from surgery.passes.mask_vector import MaskVector, Window
from surgery.passes.runner import Pass
from surgery.passes.set_weights import SetWeights
from surgery.passes.weights import bias_name
from surgery.plan.action import Action, TensorChange
from surgery.targets.choice import Choice
from surgery.targets.clause import OfClause
from surgery.targets.conditional_grid import timestep_input
from surgery.targets.context import Context
from surgery.targets.schedule import Schedule, When
from surgery.targets.support import choose_support
from surgery.targets.tied import Tied, tied


@dataclass(frozen=True, eq=False)
class ClassEmbeddings(OfClause):
    """One group of tied conditional vectors and the operation that cuts them: `remove` of `group.width` coordinates.

    `options` is a `surgery.operations.prune.Prune`.
    """

    options: Any
    group: Tied
    remove: int
    notes: tuple[str, ...]

    @property
    def when(self) -> When:
        return When.parse(self.options.when)

    @property
    def compacts(self) -> bool:
        """Whether layers shrink; otherwise c is masked where it stands."""
        return self.options.scope == "shared" and self.when.always

    @property
    def left(self) -> int:
        return self.group.width - self.remove

    def action(self, graph_module: GraphModule) -> Action:
        """The cut from shapes alone; weights are not read."""
        changes = self._changes(graph_module) if self.compacts else ()
        kept = {"width": self.left if self.compacts else self.group.width}
        return Action(
            clause=self.clause,
            place=self.place,
            operation="prune",
            kind="conditioning",
            sites=self.group.names,
            before={"width": self.group.width},
            after=kept if self.compacts else kept | {"masked": self.remove},
            tensors=changes,
            flops=self._flops() if changes else 0,
            notes=self.notes,
            settings=self.settings(),
        )

    def settings(self) -> dict[str, Any]:
        """The clause's options, those left to us as they come out: a mask folds nothing into weights."""
        named = ("side", "by", "scope", "when", "compensate", "multiple", "seed")
        given = {name: getattr(self.options, name) for name in named}
        return given if self.compacts else given | {"compensate": "none"}

    def choose(self, anatomy: Anatomy, context: Context) -> Choice | None:
        """Which coordinates stay and what makes up for the rest; None where each vector has its own."""
        if self.options.scope == "per-vector" or not self.remove:
            return None
        options = self.options if self.compacts else replace(self.options, compensate="none")
        return choose_support(anatomy, self.group, context.schedule, options, self.left, context.progress)

    def passes(self, graph_module: GraphModule, choice: Choice | None, context: Context) -> list[Pass]:
        """The rewrite: a cut where layers shrink, a mask where they cannot; nothing when nothing is removed."""
        if not self.remove:
            return []
        if not self.compacts:
            return [self._mask(choice, context.schedule)]
        tensors = {name: tensor for name, (tensor, _) in choice.tensors.items()}
        return [
            CutDimension(
                self.clause,
                self.place,
                self.group.cuts(),
                choice.keep,
                self.group.width,
                choice.linears,
                tensors,
                name="prune",
            )
        ]

    def reference(self, graph_module: GraphModule, choice: Choice | None, context: Context) -> list[Pass]:
        """The slow truth: every tensor at full size with the same values, c masked where it stands."""
        if not self.remove or not self.compacts:
            return self.passes(graph_module, choice, context)
        linears = {
            name: (_spread(weight, choice.keep, 1, self.group.width), bias)
            for name, (weight, bias) in choice.linears.items()
        }
        tensors = {
            name: _spread(tensor, choice.keep, axis, self.group.width)
            for name, (tensor, axis) in choice.tensors.items()
        }
        return [SetWeights(self.clause, self.place, linears, tensors), self._mask(choice, context.schedule)]

    def controls(self) -> Iterator[tuple[str, Any]]:
        """The paper's own variant, the criterion reversed, and five random supports, as options of the same clause."""
        yield (
            "per-vector |c| tail, masked (the paper's)",
            {"scope": "per-vector", "side": "tail", "by": "magnitude", "compensate": "none"},
        )
        yield (
            "per-vector |c| head, masked",
            {"scope": "per-vector", "side": "head", "by": "magnitude", "compensate": "none"},
        )
        for seed in range(5):
            yield (
                f"random support {seed}, least squares",
                {"side": "random", "by": "auto", "compensate": "least-squares", "seed": seed},
            )

    def _mask(self, choice: Choice | None, schedule: Schedule | None) -> MaskVector:
        return MaskVector(
            self.clause,
            self.place,
            tuple(site.vector.name for site in self.group.sites),
            self.group.width,
            self.remove,
            keep=choice.keep if choice else None,
            side=self.options.side,
            by="activation" if self.options.by == "activation" else "magnitude",
            window=self._window(schedule),
            name="prune",
        )

    def _window(self, schedule: Schedule | None) -> Window | None:
        when = self.when
        if when.always:
            return None
        if schedule is None:
            raise RefusalError(
                f"`when {self.options.when}` needs the model's sampling schedule, and this model brings none",
                code="S312",
                help="open it as `zoo:NAME`, `diffusers:PATH` or a bundle; from Python, as a LoadedModel with its diffusion",
            )
        low, high = schedule.window(when)
        return Window(timestep_input(self.group.sites[0]).name, low, high)

    def _changes(self, graph_module: GraphModule) -> tuple[TensorChange, ...]:
        changes = []
        for name, axis in self.group.weights().items():
            tensor = attribute(graph_module, name)
            after = list(tensor.shape)
            after[axis] = self.left
            changes.append(TensorChange(name, tuple(tensor.shape), tuple(after), tensor.element_size()))
        return (*changes, *self._new_biases(graph_module))

    def _new_biases(self, graph_module: GraphModule) -> Iterator[TensorChange]:
        """Compensation gives a bias to modulation layers that had none."""
        for node in self.group.unique_consumers:
            if bias_of(node) is None and self.remove and self.options.compensate != "none":
                weight = attribute(graph_module, weight_of(node).target)
                name = bias_name(weight_of(node).target)
                yield TensorChange(name, (0,), (weight.shape[0],), weight.element_size())

    def _flops(self) -> int:
        """Two per entry that is gone from a weight, for every call of it."""
        read = sum(shape(weight_of(node))[0] for node in self.group.consumers)
        made = sum(shape(weight_of(node))[1] for node in self.group.producers if is_op(node, aten.linear))
        return 2 * self.remove * (read + made)


def plan_class_embeddings(operation: Any, anatomy: Anatomy, sites: tuple[Conditioning, ...]) -> list[ClassEmbeddings]:
    """One cut per group of tied sites. All of them or none: raises RefusalError (S310) if one cannot be cut."""
    groups = tied(sites)
    span = operation.clause.span if operation.clause else None
    for group in groups:
        reason = group.obstacle(anatomy.graph_module)
        if reason and operation.scope == "shared" and operation.when == "every":
            raise RefusalError(
                f"cannot cut {group.names[0]}: {reason}",
                code="S310",
                span=span,
                notes=[f"it is one of {len(groups)} copies; all are cut, or none"] if len(groups) > 1 else (),
                help="prune with scope=per-vector, which masks c and cuts no layer",
            )
        if operation.share.of(group.width) >= group.width:
            raise RefusalError(
                f"{operation.share} of {group.width} coordinates leaves none",
                code="S313",
                span=span,
                help=f"remove at most {group.width - 1}",
            )
    return [ClassEmbeddings(operation, group, *_count(operation, group.width)) for group in groups]


def _count(operation: Any, width: int) -> tuple[int, tuple[str, ...]]:
    """Coordinates to remove: the share, to the nearest whole; then what is kept, up to the multiple."""
    remove, multiple = operation.share.of(width), operation.multiple
    kept = min(ceil((width - remove) / multiple) * multiple, width)
    exact = operation.share.fraction * width if operation.share.fraction is not None else remove
    notes = [] if exact == remove else [f"{operation.share} of {width} is {float(exact):.2f}: {remove} removed"]
    if kept != width - remove:
        notes.append(f"{width - remove} kept, rounded up to {kept}, a multiple of {multiple}")
    return width - kept, tuple(notes)


def _spread(tensor: torch.Tensor, keep: torch.Tensor, axis: int, width: int) -> torch.Tensor:
    """A compact tensor at full width, zero where coordinates are gone."""
    shape = list(tensor.shape)
    shape[axis] = width
    return tensor.new_zeros(shape).index_copy(axis, keep, tensor)

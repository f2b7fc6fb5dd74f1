"""Bind every clause, then look for what contradicts."""

from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

from surgery.check.program import Program
from surgery.diagnostics import Diagnostic, Source, Span, SpecError
from surgery.language import Reading, Spec, read, source_of
from surgery.operations import bind
from surgery.operations.data import Data
from surgery.operations.model import Model
from surgery.operations.require import Require


def check(spec: Spec | Source | str | PathLike[str], name: str | None = None) -> Program:
    """The program a spec says. `spec` is a tree, a Source, a text or a file, as for `parse`.

    Raises SpecError with all faults: of the text, of its clauses, and between them.
    """
    program, faults = examine(_reading(spec, name))
    if faults:
        raise SpecError(diagnostics=faults)
    return program


def _reading(spec: Any, name: str | None) -> Reading:
    if isinstance(spec, Spec):
        return Reading(spec, ())
    return read(spec if isinstance(spec, Source) else source_of(spec, name))


def examine(reading: Reading) -> tuple[Program, tuple[Diagnostic, ...]]:
    """What could be understood of a reading, and every fault in the order of the text."""
    bound = [bind(clause) for clause in reading.spec.clauses]
    made = [one.operation for one in bound if one.operation is not None]
    broken = bool(reading.faults) or len(made) < len(bound)
    faults = [*reading.faults, *(fault for one in bound for fault in one.faults)]
    models = [one for one in made if isinstance(one, Model)]
    data = [one for one in made if isinstance(one, Data)]
    requires = [one for one in made if isinstance(one, Require)]
    operations = [one for one in made if not isinstance(one, Model | Data | Require)]
    faults += _single(models, "model")
    faults += _single(data, "data")
    faults += _same_target(operations)
    faults += _contradicting(requires)
    faults += _unlimited(operations, requires)
    if not operations and not broken:
        faults.append(_nothing(reading.spec))
    program = Program(
        reading.spec,
        models[0] if models else None,
        data[0] if data else None,
        tuple(sorted(operations, key=lambda one: one.phase)),
        tuple(requires),
    )
    return program, tuple(sorted(faults, key=_place))


def _single(found: Sequence[Any], what: str) -> Iterable[Diagnostic]:
    for extra in found[1:]:
        help = f"keep one `{what}`"
        yield Diagnostic("S115", f"a spec has one `{what}`", _span(extra), notes=_first(found[0]), help=help)


def _same_target(operations: Sequence[Any]) -> Iterable[Diagnostic]:
    """The same operation on the same selector twice: the second would act on what the first left."""
    seen: dict[tuple[str, Any], Any] = {}
    for one in operations:
        target = getattr(one, "target", None)
        if target is None:
            continue
        first = seen.setdefault((one.verb, target), one)
        if first is not one:
            message = f"`{target.text or target}` is already {_done(one.verb)}"
            help = "write one clause with the share you want in the end"
            yield Diagnostic("S116", message, _span(one), notes=_first(first), help=help)


def _contradicting(requires: Sequence[Require]) -> Iterable[Diagnostic]:
    """Two requirements of one metric that no value can meet."""
    for index, one in enumerate(requires):
        for other in requires[:index]:
            if one.metric == other.metric and one.relative == other.relative and _disjoint(one, other):
                message = f"no {one.metric} meets both requirements"
                yield Diagnostic("S117", message, _span(one), notes=_first(other))


def _unlimited(operations: Sequence[Any], requires: Sequence[Require]) -> Iterable[Diagnostic]:
    """A share to be searched for, and no demand on quality that could end the search."""
    for one in operations:
        if getattr(getattr(one, "share", None), "auto", False) and not any(require.limits for require in requires):
            help = "add a demand on quality, such as `require perplexity <= 1.05x` or `require embedding cosine >= 0.98`"
            yield Diagnostic("S123", f"`{one.verb} auto` has no limit: nothing demands quality", _span(one), help=help)


def _disjoint(one: Require, other: Require) -> bool:
    for low, high in ((one, other), (other, one)):
        if low.comparison not in (">=", ">", "==") or high.comparison not in ("<=", "<", "=="):
            continue
        strict = low.comparison == ">" or high.comparison == "<"
        if low.limit.value > high.limit.value or (strict and low.limit.value == high.limit.value):
            return True
    return False


def _nothing(spec: Spec) -> Diagnostic:
    span = Span(spec.source, 0, 1) if spec.source and not spec.clauses and spec.source.text.strip() else None
    last = spec.clauses[-1].span if spec.clauses else span
    help = "add an operation such as `prune tail 66% of class embeddings`; `surgery explain` lists them"
    return Diagnostic("S119", "this spec asks for nothing to be done", last, help=help)


def _done(verb: str) -> str:
    return {"prune": "pruned", "sparsify": "sparsified"}.get(verb, f"named by a `{verb}`")


def _span(operation: Any) -> Span | None:
    return operation.clause.span if operation.clause else None


def _first(operation: Any) -> tuple[str, ...]:
    span = _span(operation)
    return (f"first at {span.place}",) if span else ()


def _place(fault: Diagnostic) -> int:
    return fault.span.start if fault.span else 0

"""A spec and a model brought together: what is matched, what will be cut, before any weight is read."""

import inspect as signatures
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import nn

from surgery.anatomy import Anatomy
from surgery.anatomy import inspect as inspect_model
from surgery.anatomy.capture import Inputs
from surgery.anatomy.selectors import resolve
from surgery.anatomy.site import Site
from surgery.check import Program, check
from surgery.diagnostics import Source, SurgeryError
from surgery.language import Spec, format
from surgery.models import LoadedModel, open_model
from surgery.models.devices import named_device
from surgery.plan.action import Action
from surgery.plan.fingerprint import fingerprint, tensors_of
from surgery.plan.plan import Match, Plan
from surgery.plan.size import size_of
from surgery.targets.schedule import Schedule

ANALYZE = "analyze"
"""The verb whose clauses only look."""
SpecLike = Spec | Source | str | PathLike[str]


@dataclass(frozen=True, eq=False)
class Prepared:
    """`works` are the cuts in the order they are made; `schedule` is None for a model that is no diffusion model."""

    program: Program
    model: LoadedModel
    anatomy: Anatomy
    works: tuple[Any, ...]
    matches: tuple[Match, ...]
    schedule: Schedule | None

    @property
    def settings(self) -> dict[str, Any]:
        """Of the spec's `data` clause: samples, seed, steps, …"""
        return self.program.data.settings if self.program.data else {}

    @property
    def analyses(self) -> tuple[Any, ...]:
        """What is only looked at."""
        return tuple(one for one in self.program.operations if one.verb == ANALYZE)

    @cached_property
    def plan(self) -> Plan:
        graph_module = self.anatomy.graph_module
        actions = tuple(work.action(graph_module) for work in self.works)
        return Plan(
            model=self.model.reference,
            spec=format(self.program.spec),
            fingerprint=fingerprint(graph_module),
            tensors=tensors_of(graph_module),
            actions=actions,
            matches=self.matches,
            size=size_of(graph_module),
            notes=(*self.model.notes, *self.anatomy.notes, *_overlaps(actions)),
        )


def _overlaps(actions: tuple[Action, ...]) -> tuple[str, ...]:
    """What the sum of the actions' FLOPs counts twice; parameters and bytes count once."""
    kinds = {action.kind for action in actions}
    if "block" not in kinds or not kinds & {"attention", "mlp"}:
        return ()
    return ("FLOPs of heads and channels of layers that go are counted twice: fewer are saved in all than the sum",)


def inspect(model: nn.Module, example_inputs: Inputs) -> Anatomy:
    """Capture a model and find its sites.

    example_inputs: a tuple (positional) or a dict (keyword arguments) of one forward pass; the first axis of each
    tensor is the batch. Returns an Anatomy: `.sites`, each with `kind`, `path` and its sizes. Raises CaptureError.
    """
    return inspect_model(model, named(model, example_inputs))


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """A module is in eval mode inside the block, each part of it as it was behind; anything else is left alone."""
    parts = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        for part in parts:
            part.training = False
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def plan(model: nn.Module | str, spec: SpecLike, *, example_inputs: Inputs | None = None) -> Plan:
    """What a spec would do to a model. No weights are needed: modules on the meta device do, references load none."""
    return prepare(spec, model, example_inputs=example_inputs, weights=False).plan


def prepare(
    spec: SpecLike,
    model: nn.Module | str | LoadedModel | None = None,
    *,
    example_inputs: Inputs | None = None,
    weights: bool = True,
    allow_import: bool = True,
    steps: int | None = None,
    anatomy: Anatomy | None = None,
    device: str | None = None,
) -> Prepared:
    """Check the spec, open and capture the model, resolve selectors, plan the cuts.

    `model` overrides the spec's own; `anatomy` is that model's, where it was captured before. `device` is where a model
    that is named by a reference is put: `cuda:1`. Raises SpecError, SurgeryError (S2xx), CaptureError, RefusalError.
    """
    program = check(spec)
    place = None if device is None else _placed(model, device)
    opened = _open(program, model, example_inputs, weights, allow_import)
    opened = opened if place is None else opened.on(place)
    anatomy = anatomy or inspect_model(opened.module, opened.example_inputs)
    works, matches = planned(program.operations, anatomy, opened.reference)
    settings = program.data.settings if program.data else {}
    schedule = _schedule(opened, steps or settings.get("steps"))
    return Prepared(program, opened, anatomy, works, matches, schedule)


def planned(operations: Iterable[Any], anatomy: Anatomy, model: str) -> tuple[tuple[Any, ...], tuple[Match, ...]]:
    """The cuts that operations ask for and what their selectors matched. Raises SurgeryError, RefusalError."""
    works, matches = [], []
    for operation in operations:
        sites = _sites(operation, anatomy, model)
        if sites is not None:
            matches.append(_match(operation, sites))
        if hasattr(operation, "plan"):
            works += operation.plan(anatomy, sites or ())
    return tuple(works), tuple(matches)


def open_reference(
    reference: str, *, weights: bool = True, allow_import: bool = True, dtype: str | None = None
) -> LoadedModel:
    """`open_model`, with example inputs for sure. Errors: S2xx, S320 where a factory brings none."""
    opened = open_model(reference, weights=weights, allow_import=allow_import, dtype=dtype)
    if not opened.example_inputs:
        raise _no_inputs(f"`{reference}`", "return (module, example_inputs) from the factory")
    return opened


def named(module: nn.Module, inputs: Inputs) -> Inputs:
    """Example inputs by the names of `forward`, in its order, where it names its arguments."""
    parameters = signatures.signature(module.forward).parameters
    if isinstance(inputs, Mapping):
        known = [name for name in parameters if name in inputs]
        return {name: inputs[name] for name in (*known, *(name for name in inputs if name not in known))}
    if not isinstance(inputs, tuple | list):
        return inputs
    plain = [p.name for p in parameters.values() if p.kind is signatures.Parameter.POSITIONAL_OR_KEYWORD]
    if plain[: len(inputs)] != list(parameters)[: len(inputs)] or len(inputs) > len(plain):
        return tuple(inputs)
    return dict(zip(plain, inputs, strict=False))


def _open(
    program: Program,
    model: nn.Module | str | LoadedModel | None,
    example_inputs: Inputs | None,
    weights: bool,
    allow_import: bool,
) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, nn.Module):
        if not example_inputs:
            raise _no_inputs(
                f"this {type(model).__name__}",
                "pass example_inputs, a tuple or a dict of tensors that the module can be called with",
            )
        return LoadedModel(type(model).__name__, model, named(model, example_inputs))
    dtype = program.model.dtype if program.model else None
    if model is not None:
        return open_reference(str(model), weights=weights, allow_import=allow_import, dtype=dtype)
    if program.model is None:
        raise SurgeryError(
            "no model is named",
            code="S321",
            help="write `model zoo:digits-dit` into the spec, or name one: `--model zoo:digits-dit`",
        )
    try:
        return open_reference(str(program.model.reference), weights=weights, allow_import=False, dtype=dtype)
    except SurgeryError as error:
        raise pointing_at(error, program.model.clause) from error


def _placed(model: nn.Module | str | LoadedModel | None, device: str) -> torch.device:
    if isinstance(model, nn.Module | LoadedModel):
        raise SurgeryError(
            f"device={device}: a module that is handed over is on its own device",
            code="S215",
            help="move the module and its example inputs before: `module.to(device)`",
        )
    return named_device(device)


def _no_inputs(what: str, help: str) -> SurgeryError:
    return SurgeryError(f"{what} comes without example inputs", code="S320", help=help)


def pointing_at(error: SurgeryError, clause: Any) -> SurgeryError:
    """The same error at the clause that named what is wrong."""
    if clause is None or any(one.span for one in error.diagnostics):
        return error
    return type(error)(diagnostics=[replace(one, span=clause.span) for one in error.diagnostics])


def _sites(operation: Any, anatomy: Anatomy, model: str) -> tuple[Site, ...] | None:
    """What an operation is about: what its selector names; None for one that has no selector."""
    target = getattr(operation, "target", None)
    if target is None and operation.verb != ANALYZE:
        return None
    sites = resolve(target, anatomy, model) if target else anatomy.of_kind("conditioning")
    if operation.verb == ANALYZE and {site.kind for site in sites} != {"conditioning"}:
        raise SurgeryError(
            f"nothing to analyze: {f'`{target.text or target}`' if target else model} has no class embeddings",
            code="S104",
            span=operation.clause.span if operation.clause else None,
            help=f"`surgery sites {model}` lists what there is",
        )
    return sites if target else None


def _match(operation: Any, sites: tuple[Site, ...]) -> Match:
    place = operation.clause.place if operation.clause else ""
    return Match(operation.target.text or str(operation.target), place, tuple(map(_tell, sites)))


def _schedule(model: LoadedModel, steps: int | None) -> Schedule | None:
    diffusion = model.diffusion
    if diffusion is None:
        return None
    from surgery.verify.quality import STEPS

    times = diffusion.time_input(torch.arange(diffusion.length))
    return Schedule(times, diffusion.time_input(diffusion.sampling_steps(min(steps or STEPS, diffusion.length))))


def _tell(site: Any) -> str:
    return f"{site.name}: {site.describe()}" if site.describe() else site.name

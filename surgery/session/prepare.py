"""A spec and a model brought together: what is matched, what will be cut, before any weight is read."""

import inspect as signatures
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import nn

from surgery.anatomy import Anatomy
from surgery.anatomy import inspect as inspect_model
from surgery.anatomy.capture import Inputs
from surgery.anatomy.selectors import resolve
from surgery.check import Program, check
from surgery.diagnostics import Source, SurgeryError
from surgery.language import Spec, format
from surgery.models import LoadedModel, open_model
from surgery.plan.fingerprint import fingerprint, tensors_of
from surgery.plan.plan import Match, Plan
from surgery.plan.size import size_of
from surgery.targets.schedule import Schedule

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
            notes=self.anatomy.notes,
        )


def inspect(model: nn.Module, example_inputs: Inputs) -> Anatomy:
    """Capture a model and find its sites.

    example_inputs: a tuple (positional) or a dict (keyword arguments) of one forward pass; the first axis of each
    tensor is the batch. Returns an Anatomy: `.sites`, each with `kind`, `path` and its sizes. Raises CaptureError.
    """
    return inspect_model(model, named(model, example_inputs))


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
) -> Prepared:
    """Check the spec, open and capture the model, resolve selectors, plan the cuts.

    `model` overrides the spec's own; `anatomy` is that model's, where it was captured before. Raises SpecError, SurgeryError (S2xx), CaptureError, RefusalError.
    """
    program = check(spec)
    opened = _open(program, model, example_inputs, weights, allow_import)
    anatomy = anatomy or inspect_model(opened.module, opened.example_inputs)
    works, matches = [], []
    for operation in program.operations:
        if getattr(operation, "target", None) is None:
            continue
        sites = resolve(operation.target, anatomy, opened.reference)
        matches.append(
            Match(operation.target.text or str(operation.target), _place(operation), tuple(_tell(s) for s in sites))
        )
        if hasattr(operation, "plan"):
            works += operation.plan(anatomy, sites)
    settings = program.data.settings if program.data else {}
    schedule = _schedule(opened, steps or settings.get("steps"))
    return Prepared(program, opened, anatomy, tuple(works), tuple(matches), schedule)


def named(module: nn.Module, inputs: Inputs) -> Inputs:
    """Positional example inputs by the names of `forward`, where it names its arguments."""
    if isinstance(inputs, dict) or not isinstance(inputs, tuple | list):
        return inputs
    parameters = list(signatures.signature(module.forward).parameters.values())
    plain = (signatures.Parameter.POSITIONAL_OR_KEYWORD,)
    if len(inputs) > len(parameters) or any(p.kind not in plain for p in parameters[: len(inputs)]):
        return tuple(inputs)
    return {parameter.name: value for parameter, value in zip(parameters, inputs, strict=False)}


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
        if example_inputs is None:
            raise SurgeryError(
                "a module comes without example inputs",
                code="S320",
                help="pass example_inputs, a tuple or a dict of tensors that the module can be called with",
            )
        return LoadedModel(type(model).__name__, model.eval(), named(model, example_inputs))
    if model is not None:
        return open_model(str(model), weights=weights, allow_import=allow_import)
    if program.model is None:
        raise SurgeryError(
            "no model is named",
            code="S321",
            help="write `model zoo:digits-dit` into the spec, or name one: `--model zoo:digits-dit`",
        )
    return open_model(str(program.model.reference), weights=weights)


def _schedule(model: LoadedModel, steps: int | None) -> Schedule | None:
    diffusion = model.diffusion
    if diffusion is None:
        return None
    from surgery.verify.quality import STEPS

    times = diffusion.time_input(torch.arange(diffusion.length))
    return Schedule(times, diffusion.time_input(diffusion.sampling_steps(min(steps or STEPS, diffusion.length))))


def _place(operation: Any) -> str:
    return operation.clause.place if operation.clause else ""


def _tell(site: Any) -> str:
    return f"{site.name}: {site.describe()}" if site.describe() else site.name

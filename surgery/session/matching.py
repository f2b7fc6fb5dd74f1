"""`compensate=match`: the weights a cut changed follow the original network's outputs, without a single image.

Where few coordinates are left, no choice of weights on the conditional grid can do: with n features the modulation
layers span n directions, and the network's output tells which ones matter. It is asked on the states that its own
sampler passes through, from noise.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.graphs import aten, attribute, bias_of, calls, weight_of
from surgery.compensation import match
from surgery.diagnostics import RefusalError
from surgery.models import Diffusion
from surgery.models.data import open_data
from surgery.session.prepare import Prepared
from surgery.targets.choice import Candidate, Choice
from surgery.verify.outputs import first_tensor
from surgery.verify.quality import STEPS
from surgery.verify.sampler import ddim, start_noise

TRAJECTORIES = 200
ITERATIONS = 600

Progress = Callable[[str, int, int], None]


def matched(
    prepared: Prepared, choices: tuple[Choice | None, ...], student: GraphModule, progress: Progress | None
) -> tuple[Choice | None, ...]:
    """The choices with their weights moved; `student` is the graph they made, and is changed with them.

    Only choices that asked for `compensate=match` move. Raises RefusalError (S316) for a model that is not float32.
    """
    asking = [_asks(work) and choice is not None for work, choice in zip(prepared.works, choices, strict=True)]
    names = [name for choice, asks in zip(choices, asking, strict=True) if asks for name in _changed(student, choice)]
    parameters = [attribute(student, name) for name in names]
    _refuse_half(parameters, names)
    found = match(
        lambda **inputs: first_tensor(student(**inputs)),
        lambda **inputs: first_tensor(prepared.anatomy.graph_module(**inputs)),
        parameters,
        sampled_states(prepared),
        steps=ITERATIONS,
        seed=prepared.works[asking.index(True)].options.seed,
        progress=progress and (lambda step, error: progress(f"matching outputs, error {error:.1e}", step, ITERATIONS)),
    )
    note = f"outputs matched on the sampler's states: held-out error {found.before:.2e}, then {found.after:.2e}"
    moved = (_moved(student, choice, note) if asks else choice for choice, asks in zip(choices, asking, strict=True))
    return tuple(moved)


def asks_match(prepared: Prepared) -> bool:
    """Whether any cut asks for it."""
    return any(map(_asks, prepared.works))


def _asks(work: Any) -> bool:
    return getattr(work.options, "compensate", None) == "match"


def _changed(student: GraphModule, choice: Choice) -> list[str]:
    biases = [bias for bias in _biases(student, choice).values() if bias is not None]
    return [*choice.linears, *biases, *choice.tensors]


def _biases(student: GraphModule, choice: Choice) -> dict[str, str | None]:
    """The bias's name of every changed linear, by its weight's name."""
    names = {}
    for node in calls(student, aten.linear):
        weight, bias = weight_of(node), bias_of(node)
        if weight is not None and weight.target in choice.linears:
            names[weight.target] = None if bias is None else bias.target
    return names


def _moved(student: GraphModule, choice: Choice, note: str) -> Choice:
    """The choice with the student's present values."""
    biases = _biases(student, choice)
    linears = {
        name: (_value(student, name), None if biases[name] is None else _value(student, biases[name]))
        for name in choice.linears
    }
    tensors = {name: (_value(student, name), axis) for name, (_, axis) in choice.tensors.items()}
    chosen = Candidate(choice.chosen.by, "match", choice.chosen.error)
    return replace(choice, chosen=chosen, linears=linears, tensors=tensors, notes=(*choice.notes, note))


def _value(student: GraphModule, name: str) -> Tensor:
    return attribute(student, name).detach().clone()


def sampled_states(prepared: Prepared) -> dict[str, Tensor]:
    """Inputs of the network along its own sampling paths; random ones for a model that is not sampled from."""
    model = prepared.model
    if model.diffusion is None:
        return dict(open_data("noise", model, samples=512).inputs)
    visited: list[dict[str, Tensor]] = []

    def recorded(**inputs: Tensor) -> Any:
        visited.append(inputs)
        return prepared.anatomy.graph_module(**inputs)

    noise = start_noise(model.diffusion, TRAJECTORIES, seed=0)
    with torch.no_grad():
        ddim(recorded, model.diffusion, noise, _labels(model.diffusion), min(STEPS, model.diffusion.length))
    return {name: torch.cat([inputs[name] for inputs in visited]) for name in visited[0]}


def _labels(diffusion: Diffusion) -> Tensor:
    """All classes in turn, the null class among them: guidance reads it too."""
    rows = [*range(diffusion.classes), *([] if diffusion.null_class is None else [diffusion.null_class])]
    return torch.tensor(rows)[torch.arange(TRAJECTORIES) % len(rows)]


def _refuse_half(parameters: list[Tensor], names: list[str]) -> None:
    for parameter, name in zip(parameters, names, strict=True):
        if parameter.dtype not in (torch.float32, torch.float64):
            raise RefusalError(
                f"`{name}` is {str(parameter.dtype).removeprefix('torch.')}: steps this small are lost in it",
                code="S316",
                help="use compensate=refit, or operate on the float32 model and convert the result",
            )

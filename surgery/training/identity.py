"""What a training is a training of, for checkpoints: settings, objective, graph, weights, data."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.graphs import attribute
from surgery.models.digest import digest
from surgery.plan.fingerprint import fingerprint
from surgery.training.examples import Calibration
from surgery.training.objective import Objective
from surgery.training.settings import Settings


def identity_of(
    graph_module: GraphModule, calibration: Calibration, settings: Settings, objective: Objective
) -> dict[str, Any]:
    """Names to plain values; two trainings whose values are equal come to the same weights."""
    read = sorted({node.target for node in graph_module.graph.nodes if node.op == "get_attr"})
    data: Mapping[str, Tensor] = dict(calibration.inputs)
    data |= {} if calibration.targets is None else {"targets": calibration.targets}
    return {
        **settings.identity(),
        **objective.identity(),
        "task": calibration.task,
        "graph": fingerprint(graph_module),
        "weights": digest({name: attribute(graph_module, name).detach().cpu() for name in read}),
        "calibration data": digest({name: value.cpu() for name, value in data.items()}),
    }

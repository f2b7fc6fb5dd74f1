"""Weights, the best weights so far and the optimizer's moments: into a checkpoint and back."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from surgery.training.checkpoint import Checkpoint
from surgery.training.processes import Processes

MOMENTS = ("exp_avg", "exp_avg_sq")


def gathered(
    processes: Processes, trained: Mapping[str, Parameter], best: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Whole tensors on the CPU by `KIND.NAME`. Every process takes part in putting them together."""
    kinds = {"weight": {name: value.detach() for name, value in trained.items()}, "best": best}
    kinds |= {key: {name: optimizer.state[value][key] for name, value in trained.items()} for key in MOMENTS}
    return {
        f"{kind}.{name}": processes.whole(value).cpu()
        for kind, values in kinds.items()
        for name, value in values.items()
    }


@torch.no_grad()
def restored(
    processes: Processes, trained: Mapping[str, Parameter], optimizer: torch.optim.Optimizer, found: Checkpoint
) -> dict[str, Tensor]:
    """Put a checkpoint's tensors in place; returns the best weights so far."""
    weights, best = found.below("weight"), found.below("best")
    moments = {key: found.below(key) for key in MOMENTS}
    for name, parameter in trained.items():
        parameter.copy_(processes.part(weights[name], parameter))
        state = {key: processes.part(values[name], parameter) for key, values in moments.items()}
        done = torch.tensor(float(found.told["step"]), device=parameter.device)
        optimizer.state[parameter] = {"step": done, **state}
    return {name: processes.part(best[name], parameter) for name, parameter in trained.items()}

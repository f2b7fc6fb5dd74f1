"""Train a zoo model: resumable to the bit, atomic, and stopped by the first number that is not finite."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from surgery.diagnostics import SurgeryError
from surgery.zoo import digits
from surgery.zoo.recipe import Recipe
from surgery.zoo.store import load_state, save_state, save_weights

STATE_EVERY = 250


@dataclass
class Trainee:
    """A network in training: its weights, their moving average, the optimizer, and the steps done."""

    recipe: Recipe
    network: nn.Module
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def fresh(cls, recipe: Recipe) -> "Trainee":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.training.seed)
            network = recipe.build()
        optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.training.rate, weight_decay=0.0, fused=True)
        average = {name: value.clone() for name, value in network.state_dict().items()}
        return cls(recipe, network, average, optimizer)

    def state(self) -> dict[str, Tensor]:
        """Everything that resuming needs, as flat named tensors."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, parameter in self.network.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors | {"step": torch.tensor(self.step)}

    @classmethod
    def resumed(cls, recipe: Recipe, tensors: dict[str, Tensor]) -> "Trainee":
        trainee = cls.fresh(recipe)
        trainee.network.load_state_dict(_below("network.", tensors))
        trainee.average = _below("average.", tensors)
        trainee.step = int(tensors["step"])
        moments = {key: _below(f"optimizer.{key}.", tensors) for key in ("step", "exp_avg", "exp_avg_sq")}
        for name, parameter in trainee.network.named_parameters():
            trainee.optimizer.state[parameter] = {key: values[name] for key, values in moments.items()}
        return trainee

    def advance(self, data: digits.Images) -> float:
        """One step; returns its loss. The batch depends on the seed and the step alone, so resuming is exact."""
        plan = self.recipe.training
        for group in self.optimizer.param_groups:
            group["lr"] = plan.rate_at(self.step)
        loss = self.recipe.loss(self.network, data, plan.chance(self.step))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), plan.gradient_norm)
        if not torch.isfinite(loss + norm):
            raise SurgeryError(
                f"training {self.recipe.name} met a loss of {float(loss)} at step {self.step}",
                code="S801",
                help="the last good state is kept; resume it with a lower learning rate, or start again",
            )
        self.optimizer.step()
        self._update_average(plan.average_at(self.step))
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self, decay: float) -> None:
        current = self.network.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [current[name] for name in self.average], 1 - decay)


def train(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    progress: Callable[[int, float], None] | None = None,
) -> Trainee:
    """Train to `recipe.training.steps`; `out` gets the averaged weights, `out` + `.state` what resuming needs.

    Ctrl-C and a loss that is not finite both leave the last good state on disk.
    """
    state = out.with_name(out.name + ".state")
    trainee = Trainee.resumed(recipe, load_state(state)) if resume else Trainee.fresh(recipe)
    data = digits.split(held_out=False)
    trainee.network.train()
    try:
        while trainee.step < recipe.training.steps:
            loss = trainee.advance(data)
            if progress is not None:
                progress(trainee.step, loss)
            if trainee.step % STATE_EVERY == 0:
                save_state(state, trainee.state())
    finally:
        save_state(state, trainee.state())
    save_weights(out, trainee.average, recipe.name, trainee.step)
    return trainee


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

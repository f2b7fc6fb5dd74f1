"""`heal`: the graph as it is by then, trained to make up for what is gone."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from surgery.anatomy.placement import fitted
from surgery.anatomy.site import Anatomy
from surgery.diagnostics import RefusalError
from surgery.passes.set_weights import SetWeights
from surgery.plan.action import Action
from surgery.targets.clause import OfClause
from surgery.targets.context import Context
from surgery.targets.learned import Learned
from surgery.targets.losses import has_loss
from surgery.training.distillation import first_floating
from surgery.training.engine import train
from surgery.training.objective import Recovery
from surgery.training.settings import Settings
from surgery.training.trained import Trained

WEIGHTS = {"data": (1.0, 0.0), "distillation": (0.0, 1.0), "both": (1.0, 1.0)}
"""Of the data's loss and of the divergence from the original."""


@dataclass(frozen=True, eq=False)
class Recovering(OfClause):
    """`options` is a `surgery.operations.heal.Heal`."""

    options: Any

    def action(self, graph_module: GraphModule) -> Action:
        """Nothing changes its shape, and nothing is saved."""
        named = ("steps", "lr", "batch", "accumulate", "precision", "decay", "lora", "seed")
        weights = f"adapters of rank {self.options.lora}" if self.options.lora else "all weights"
        return Action(
            clause=self.clause,
            place=self.place,
            operation="heal",
            kind="model",
            sites=(),
            before={"steps": 0},
            after={"steps": self.options.steps},
            notes=(f"{weights} are trained on calibration rows; the best state on rows kept apart is what stays",),
            settings={name: getattr(self.options, name) for name in named},
        )

    def choose(self, anatomy: Anatomy, context: Context) -> Learned:
        """Train. Raises RefusalError: S323 without data or without a loss, S815 for a teacher that does not fit;
        SurgeryError as `surgery.training.engine.train`."""
        if context.calibration is None:
            raise self._refused(
                "S323",
                "`heal` needs calibration data to train on, and there is none",
                'name some with rows to spare, as in `data text:"corpus.txt" samples=2000 calibration=75%`',
            )
        by = self._by(context)
        graph_module, original = context.rewritten(), anatomy.graph_module
        if by != "data":
            self._refuse_teacher(graph_module, original, context)
        settings = self._settings(by, context)
        found = train(
            graph_module,
            context.calibration,
            settings,
            Recovery(),
            teacher=original if settings.distill else None,
            progress=context.progress,
            what="healing",
        )
        return self._learned(found, by)

    def passes(self, graph_module: GraphModule, choice: Learned, context: Context) -> list[Any]:
        return [SetWeights(self.clause, self.place, tensors=choice.tensors, name="heal")] if choice.tensors else []

    def reference(self, graph_module: GraphModule, choice: Learned, context: Context) -> list[Any]:
        """The same: values alone change, and no claim is made of them."""
        return self.passes(graph_module, choice, context)

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """None: the loss before and behind is in the report."""
        return iter(())

    def _by(self, context: Context) -> str:
        learnable = has_loss(context.calibration.task, context.calibration.targets)
        if self.options.by in ("data", "both") and not learnable:
            raise self._refused(
                "S323",
                f"`heal by {self.options.by}` needs data with a loss of its own, and this has inputs alone",
                "learn from the original: `heal by distillation`",
            )
        if self.options.by != "auto":
            return self.options.by
        return "data" if learnable else "distillation"

    @torch.no_grad()
    def _refuse_teacher(self, graph_module: GraphModule, original: GraphModule, context: Context) -> None:
        """Outputs of another shape cannot be compared: after a vocabulary was cut, for one."""
        inputs, _ = next(context.calibration.batches())
        rows = pytree.tree_map_only(Tensor, lambda value: value[:1], inputs)
        said = [first_floating(module(**fitted(module, rows))).shape for module in (graph_module, original)]
        if said[0] != said[1]:
            raise self._refused(
                "S815",
                f"the original's outputs are {list(said[1])} a row, the cut model's {list(said[0])}",
                "learn from the data alone: `heal by data`",
            )

    def _settings(self, by: str, context: Context) -> Settings:
        options = self.options
        data, distill = WEIGHTS[by]
        named = ("steps", "batch", "accumulate", "precision", "decay", "lora", "seed", "shard")
        folder = context.checkpoints / self._folder() if context.checkpoints else None
        same = {name: getattr(options, name) for name in named}
        return Settings(rate=options.lr, data=data, distill=distill, checkpoint=folder, **same)

    def _folder(self) -> str:
        """`heal-7-1` for the clause in line 7, column 1."""
        return "-".join(["heal", *(part for part in self.place.split(":") if part.isdigit())])

    def _learned(self, found: Trained, by: str) -> Learned:
        start, best = found.start, found.best
        what = "loss" if by != "distillation" else "distance from the original"
        if found.best_step == 0:
            told = f"no state was better than the beginning, which stays: its {what} is {start.loss:.4g}"
        else:
            when = f"at step {best.step} of {self.options.steps}"
            told = f"{what} {start.loss:.4g} → {best.loss:.4g} on rows kept apart, {when}"
        told_in_report = {
            "learned_from": by,
            "error": best.loss,
            "started": start.document(),
            "best": best.document(),
            "state": found.state,
        }
        finding = {"clause": self.clause, "place": self.place, "learned_from": by} | found.finding("heal")
        tensors = found.weights if found.best_step else {}
        return Learned(tensors, told_in_report, (finding,), (told, *found.notes))

    def _refused(self, code: str, message: str, help: str) -> RefusalError:
        span = self.options.clause.span if self.options.clause else None
        return RefusalError(message, code=code, span=span, help=help)

"""What a cut may look at beside the model's weights: the sampling schedule, data to calibrate on, and who watches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from surgery.targets.calibration import Calibration
from surgery.targets.passage import Passage
from surgery.targets.schedule import Schedule

__all__ = ["Calibration", "Context", "Progress", "silent"]

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """The progress of a run nobody watches."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a cut is chosen and made with.

    schedule     of a diffusion model, else None
    calibration  None where there is nothing to calibrate on
    progress     called with (stage, done, total); total 0 where it is not known
    passage      the calibration data on its way through the network, for cuts that are chosen one after the other
    source       the model's config and tokenizer files, as in LoadedModel
    known        what was computed once, for all cuts
    rewritten    for what comes behind the cuts: gives the graph as the works before it leave it, not yet quickened
    checkpoints  a folder for what long training leaves on its way, to go on from; None: nothing is kept
    """

    schedule: Schedule | None = None
    calibration: Calibration | None = None
    progress: Progress = silent
    passage: Passage | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    known: dict[Any, Any] = field(default_factory=dict, repr=False)
    rewritten: Callable[[], GraphModule] | None = None
    checkpoints: Path | None = None

    def begun(self, graph_module: GraphModule) -> "Context":
        """The same with a passage at its beginning, where there is data to calibrate on."""
        return replace(self, passage=Passage(graph_module, self.calibration) if self.calibration else None)

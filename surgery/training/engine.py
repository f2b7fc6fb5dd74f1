"""Train a captured graph: any model, any objective, in one process or several, resumable to the bit."""

import signal
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch.fx import GraphModule

from surgery.diagnostics import SurgeryError
from surgery.training.examples import Calibration
from surgery.training.identity import identity_of
from surgery.training.losses import Forward, Losses, penalized, plain
from surgery.training.objective import Objective
from surgery.training.processes import count, place, settle
from surgery.training.run import EVALUATION, BeforeStep, Evaluate, Progress, Run
from surgery.training.settings import Settings
from surgery.training.trained import Trained
from surgery.training.trainee import Trainee
from surgery.zoo.interrupt import deferred_interrupt

__all__ = ["EVALUATION", "penalized", "plain", "train"]


def train(
    graph_module: GraphModule,
    calibration: Calibration,
    settings: Settings,
    objective: Objective,
    *,
    teacher: Callable[..., Any] | None = None,
    before_step: BeforeStep | None = None,
    forward: Forward | None = None,
    evaluate: Evaluate | None = None,
    progress: Progress = lambda stage, done, total: None,
    whole: Collection[str] = (),
    scales: Mapping[str, float] | None = None,
    what: str = "training",
) -> Trained:
    """Train a copy of a graph; the graph and its tensors are left as they were, and its buffers are fixed.

    calibration  rows to train on; a tenth of them, a batch at least, only judges
    teacher      called with a batch's inputs, where `settings.distill` asks for it
    before_step  called with (the copy, step, micro) before each forward pass: it may write into buffers, and nothing
                 else may be random. `micro` counts through all processes' passes of a step; EVALUATION where nothing is
                 learned
    forward      (module, inputs by keyword) → (outputs, penalty or None)
    evaluate     (the copy, rows to judge by) → (loss, penalty or None); else both are means of `forward`'s
    whole        tensors that are trained beside adapters; `scales` multiples of the rate, by name
    what         the name of this training in the progress

    Returns Trained: the best state by the objective. A loss or gradient that is not finite ends it with the last good
    states kept. With `settings.checkpoint` a training goes on from where it was interrupted, to the bit.
    Raises SurgeryError (S812, S814), KeyboardInterrupt where Ctrl-C was pressed or SIGTERM sent, behind the step that
    was under way.
    """
    if settings.distill and teacher is None:
        raise SurgeryError("there is no teacher to learn from", code="S814", help="give `teacher`, or distill=0")
    settle(objective)
    trainee = Trainee.of(graph_module, settings.lora, settings.seed, whole)
    known = settings.checkpoint or count() > 1
    run = Run(
        trainee=trainee,
        calibration=calibration,
        settings=settings,
        objective=objective,
        losses=Losses(trainee, calibration, settings, forward or plain, teacher),
        before_step=before_step or (lambda module, step, micro: None),
        evaluate=evaluate,
        identity=identity_of(graph_module, calibration, settings, objective) if known else {},
    )
    run.begin(scales or {})
    with deferred_interrupt(signal.SIGTERM) as interrupted:
        run.go(interrupted, progress if place() == 0 else lambda stage, done, total: None, what)
    return run.result()

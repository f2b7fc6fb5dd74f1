"""An operation of one's own: `silence attention in layers 2..3` makes chosen attention layers add nothing.

A package offers it to everyone by an entry point, and edits nothing in surgery:

    [project.entry-points."surgery.operations"]
    silence = "your_package.silence:Silence"
"""

from dataclasses import dataclass
from typing import Any

import torch

import surgery
from surgery.anatomy.graphs import aten, attribute, bias_of, weight_of
from surgery.operations import Phase, Selector, subject
from surgery.passes.set_weights import SetWeights
from surgery.plan.action import Action


@surgery.operation
class Silence:
    """Make attention layers add nothing to the residual stream.

    before   x + attention(x)        after   x + 0
    refuses  attention without an output projection
    """

    phase = Phase.SPARSIFY
    target: Selector = subject(Selector, doc="which layers: `attention in layers 2..3`")

    def plan(self, anatomy: Any, sites: tuple) -> list["Silenced"]:
        return [Silenced(self, site) for site in sites]


@dataclass(frozen=True, eq=False)
class Silenced:
    """One attention layer; see surgery.plan.work.Work for what each method is."""

    options: Silence
    site: Any

    def action(self, graph_module: Any) -> Action:
        clause = self.options.clause
        return Action(
            clause=str(clause), place=clause.place, operation="silence", kind="attention", sites=(self.site.name,),
            before={"heads": self.site.heads}, after={"heads": 0},
        )  # fmt: skip

    def choose(self, anatomy: Any, context: Any) -> None:
        return None

    def passes(self, graph_module: Any, choice: None, context: Any) -> list[SetWeights]:
        """Zero the output projection: its result is then 0 whatever the heads say."""
        output = self.site.projections[-1]
        names = [node.target for node in (weight_of(output), bias_of(output)) if node is not None]
        zeros = {name: torch.zeros_like(attribute(graph_module, name)) for name in names}
        return [SetWeights(*self._mark(), tensors=zeros, name="silence")]

    def reference(self, graph_module: Any, choice: None, context: Any) -> list["Muted"]:
        """The same by multiplying the projection's result with 0."""
        return [Muted(*self._mark(), self.site.projections[-1].name)]

    def controls(self) -> list:
        return []

    def _mark(self) -> tuple[str, str]:
        return str(self.options.clause), self.options.clause.place


@dataclass(frozen=True)
class Muted:
    """before  linear(x)      after  0 · linear(x)"""

    clause: str
    place: str
    node: str
    name: str = "mute"

    def requires(self, graph_module: Any) -> None:
        return None

    def run(self, graph_module: Any) -> None:
        linear = next(node for node in graph_module.graph.nodes if node.name == self.node)
        with graph_module.graph.inserting_after(linear):
            muted = graph_module.graph.call_function(aten.mul.Tensor, (linear, 0.0))
        linear.replace_all_uses_with(muted, delete_user_cb=lambda user: user is not muted)

    def ensures(self, graph_module: Any) -> None:
        return None


def main() -> None:
    result = surgery.compile(
        "zoo:digits-dit", "data digits samples=20 steps=4; silence attention in layers 2..3", timing=False
    )
    for action in result.plan.actions:
        print(action.site, dict(action.before), "->", dict(action.after))
    for row in result.report["quality"]:
        print(f"{row['metric']:<15} {row['before']:.4g} -> {row['after']:.4g}")
    print("proven:", all(row["holds"] for row in result.report["parity"]))


if __name__ == "__main__":
    main()

"""`sparsify attention 99.6% via gates`: gates on the scores themselves, learned by post-training, the paper's method.

    s = q kᵀ / √d, masked        z = s + b, one learned b per head        A = softmax(s) · [z > 0], not renormalised

Source: Draye, Lei, Pan, Posner, Schölkopf, arXiv 2512.05865.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.attention_form import AttentionForm, Obstacle, forms_of
from surgery.anatomy.graphs import attribute
from surgery.anatomy.site import Anatomy, Site
from surgery.diagnostics import RefusalError
from surgery.passes.gate_edges import LEAVES, Gate, GateEdges
from surgery.passes.runner import Pass, run_passes
from surgery.passes.set_weights import SetWeights
from surgery.passes.witness_gates import WitnessGates
from surgery.plan.action import Action, TensorChange
from surgery.targets.clause import OfClause, refuse_options
from surgery.targets.context import Context
from surgery.targets.dead_heads import CLOSED, Removal, removal
from surgery.targets.edge_tally import Tally, biases, induction, tally, threshold, thresholds
from surgery.targets.gate_lowering import lowering
from surgery.targets.gate_training import GateTraining, aimed, normalize_of, requested_of, train_gates
from surgery.targets.learned import Learned


OPEN = -CLOSED
"""The bias of a head that keeps every edge."""
STARTING_MASS = 0.95
"""Of each head's attention, what gates keep at first: few edges hold it, and little changes without the rest."""


def plan(operation: Any, anatomy: Anatomy, sites: tuple[Site, ...]) -> list["Gates"]:
    """One work for all sites of the clause. Raises RefusalError: S318, S325."""
    refuse_options(
        operation,
        {"by": operation.by == "mass", "score": operation.score != "exact", "block": operation.block != 64},
        "gates, which rank edges by their scores",
        "leave it out; `by magnitude` and `by random` are the controls of gates",
    )
    span = operation.clause.span if operation.clause else None
    for site in sites:
        for form in forms_of(anatomy.graph_module, site):
            if isinstance(form, Obstacle):
                raise RefusalError(
                    f"the edges of `{site.name}` cannot be reached: {form.reason}",
                    code="S325",
                    span=span,
                    notes=[f"at node `{form.node.name}`"],
                    help=f"leave it out: `{site.left_out}`, or write it with scaled_dot_product_attention",
                )
        for linear in site.linears:
            _refuse_whole_numbers(anatomy, site, linear, span)
    return [Gates(operation, sites)]


def _refuse_whole_numbers(anatomy: Anatomy, site: Site, linear: Any, span: Any) -> None:
    for node in linear.all_input_nodes:
        if node.op == "get_attr" and not attribute(anatomy.graph_module, node.target).is_floating_point():
            raise RefusalError(
                f"the edges of `{site.name}` cannot be learned: `{node.target}` has no gradient",
                code="S325",
                span=span,
                help="open the model in float32 or bfloat16, not quantized",
            )


@dataclass(frozen=True, eq=False)
class Gates(OfClause):
    """All sites of a clause. `options` is a `surgery.operations.sparsify.Sparsify`."""

    options: Any
    sites: tuple[Site, ...]

    def action(self, graph_module: GraphModule) -> Action:
        """Nothing gets smaller: edges are switched off where they were computed, and each head gets one number more."""
        gates = self._gates(graph_module, {})
        itemsize = 4
        tensors = tuple(TensorChange(gate.tensor, (0,), tuple(gate.numbers.shape), itemsize) for gate in gates)
        requested = requested_of(self.options)
        kept = "as few as the tolerance lets" if requested is None else f"{100 * (1 - requested):.3g}%"
        named = ("via", "by", "tolerance", "follow", "steps", "lr", "batch", "precision", "lora", "distill", "bias", "dead", "seed")
        settings = {name: getattr(self.options, name) for name in named}
        return Action(
            clause=self.clause,
            place=self.place,
            operation="sparsify",
            kind="attention",
            sites=tuple(site.name for site in self.sites),
            before={"edges": "100%"},
            after={"edges": kept},
            tensors=tensors,
            notes=("how many edges go is found by training, when the spec is applied",),
            settings=settings | {"tolerance": str(self.options.tolerance), "normalize": normalize_of(self.options)},
        )

    def choose(self, anatomy: Anatomy, context: Context) -> Learned:
        """Train the gates, or, for the controls, choose as many edges per head otherwise. Raises RefusalError (S323)."""
        graph_module = context.rewritten() if context.rewritten else anatomy.graph_module
        if context.calibration is None:
            raise RefusalError(
                "gates are learned on data, and there is none to train on",
                code="S323",
                span=self.options.clause.span if self.options.clause else None,
                help='name data, as in `data text:"corpus.txt" samples=512 calibration=75%`',
            )
        if self._by != "learned":
            return self._control(graph_module, context)
        gates = self._gates(graph_module, self._start(graph_module, context))
        training = train_gates(graph_module, gates, self.options, context, self.clause, self.place)
        context.progress("counting edges", 0, 0)
        written_out = self._written_out(graph_module, training.trained.weights)
        counted = tally(written_out, context.calibration)
        context.known[self._key] = {path: each.share() for path, each in counted.items()}
        lowered = lowering(graph_module, self._forms(graph_module), self.options, context)
        told = self._told(training, counted, lowered)
        return Learned(
            training.trained.weights,
            told,
            (self._edges(counted, lowered, context), self._trained(training), *self._induction(written_out, context)),
            (*self._notes(training, counted, self._removal(graph_module, told["dead"])), *training.trained.notes),
        )

    def passes(self, graph_module: GraphModule, choice: Learned, context: Context) -> list[Pass]:
        """What training changed, dead heads out where that is asked for, and gates with what they learned."""
        found = self._removal(graph_module, choice.told.get("dead", {}))
        return [*self._trained_weights(choice), *found.cuts, self._gating(GateEdges, graph_module, choice, found)]

    def reference(self, graph_module: GraphModule, choice: Learned, context: Context) -> list[Pass]:
        """The same with a witness behind each site, its formula in float64; dead heads are there, and closed."""
        found = self._removal(graph_module, choice.told.get("dead", {}))
        return [*self._trained_weights(choice), self._gating(WitnessGates, graph_module, choice, found)]

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """As many edges per head, without training."""
        if self._by == "learned":
            yield "random edges, as many per head", {"by": "random"}
            yield "the dense model's strongest edges, as many per head", {"by": "magnitude"}

    @property
    def _by(self) -> str:
        return "learned" if self.options.by == "auto" else self.options.by

    @property
    def _key(self) -> tuple:
        return ("gates", self.clause, self.place, tuple(site.name for site in self.sites))

    def _forms(self, graph_module: GraphModule) -> dict[str, list[AttentionForm]]:
        """The calls of every site by its gate's path; what earlier works took out is not among them."""
        found: dict[str, list[AttentionForm]] = {}
        for site in self.sites:
            forms = [form for form in forms_of(graph_module, site) if isinstance(form, AttentionForm)]
            if forms:
                path = site.path or site.kind
                found[path if path not in found else f"{path}.{len(found)}"] = forms
        return found

    def _gates(
        self, graph_module: GraphModule, numbers: Mapping[str, Tensor], lowered: Mapping[str, str] | None = None
    ) -> tuple[Gate, ...]:
        """`numbers` by path, else each starts with the bias that the clause says."""
        return tuple(
            Gate(
                path,
                tuple(form.product.name for form in forms),
                forms[0].heads,
                numbers.get(path, torch.full((forms[0].count,), float(self.options.bias or 0.0))),
                self._by,
                (lowered or {}).get(path, "").startswith("surgery::"),
                self.options.seed,
            )
            for path, forms in self._forms(graph_module).items()
        )

    def _start(self, graph_module: GraphModule, context: Context) -> dict[str, Tensor]:
        """The biases that gates start with, by path."""
        if self.options.bias is not None:
            return {}
        context.progress("choosing the first biases", 0, 0)
        opened = {gate.tensor: torch.full_like(gate.numbers, OPEN) for gate in self._gates(graph_module, {})}
        return biases(self._written_out(graph_module, opened), context.calibration, STARTING_MASS)

    def _gating(self, kind: type[GateEdges], graph_module: GraphModule, choice: Learned, found: Removal) -> GateEdges:
        """The gates of what is left of the heads; in a reference of all, those that go closed."""
        gates = []
        for gate in self._gates(graph_module, {}, choice.told["lowered"]):
            numbers, heads = choice.tensors[gate.tensor], gate.heads
            if gate.path in found.heads and kind is WitnessGates:
                numbers = numbers.index_fill(0, found.gone[gate.path].to(numbers.device), CLOSED)
            elif gate.path in found.heads:
                numbers = numbers[found.heads[gate.path]]
                heads = (len(numbers),)
            gates.append(replace(gate, numbers=numbers, heads=heads))
        return kind(self.clause, self.place, tuple(gates), normalize_of(self.options))

    def _trained_weights(self, choice: Learned) -> list[Pass]:
        rest = {name: tensor for name, tensor in choice.tensors.items() if name.rpartition(".")[2] not in LEAVES.values()}
        return [SetWeights(self.clause, self.place, tensors=rest, name="trained")] if rest else []

    def _removal(self, graph_module: GraphModule, dead: Mapping[str, list[int]]) -> Removal:
        if self.options.dead != "remove" or not any(dead.values()):
            return Removal()
        calls = {path: [form.product.name for form in forms] for path, forms in self._forms(graph_module).items()}
        asked = {path: (calls[path], heads) for path, heads in dead.items() if path in calls}
        return removal(graph_module, asked, self.clause, self.place)

    def _written_out(self, graph_module: GraphModule, tensors: Mapping[str, Tensor]) -> GraphModule:
        """The gated graph with all its weights in plain sight."""
        choice = Learned(tensors, {"lowered": {}})
        gating = self._gating(GateEdges, graph_module, choice, Removal())
        return run_passes(graph_module, [*self._trained_weights(choice), gating])

    def _control(self, graph_module: GraphModule, context: Context) -> Learned:
        """Shares per head are the trained gates' where those are known, else the clause's, and magnitude parts it among
        all heads."""
        forms, known = self._forms(graph_module), context.known.get(self._key)
        shares = known or {path: torch.full((found[0].count,), aimed(self.options)) for path, found in forms.items()}
        names = {gate.path: gate.tensor for gate in self._gates(graph_module, {})}
        numbers = {path: shares[path].float() for path in names}
        if self._by == "magnitude":
            plain = self._written_out(graph_module, {names[path]: torch.zeros_like(n) for path, n in numbers.items()})
            numbers = (thresholds if known else threshold)(plain, context.calibration, shares)
        tensors = {names[path]: values for path, values in numbers.items()}
        counted = tally(self._written_out(graph_module, tensors), context.calibration)
        told = {"requested": requested_of(self.options), "achieved": _off(counted), "lowered": dict.fromkeys(names, "")}
        return Learned(tensors, told, (self._edges(counted, {}, context),))

    def _told(self, training: GateTraining, counted: Mapping[str, Tally], lowered: Mapping[str, str]) -> dict[str, Any]:
        best = training.trained.best
        return {
            "requested": requested_of(self.options),
            "achieved": _off(counted),
            "loss of": "the dense model's outputs" if training.taught else "the data",
            "dense loss": training.dense,
            "target": training.target,
            "loss": best.loss,
            "feasible": best.feasible,
            "best_step": best.step,
            "state": training.trained.state,
            "normalize": normalize_of(self.options),
            "dead": {path: (each.kept == 0).nonzero()[:, 0].tolist() for path, each in counted.items()},
            "lowered": {path: text.partition(": ")[0] for path, text in lowered.items()},
        }

    def _notes(self, training: GateTraining, counted: Mapping[str, Tally], found: Removal) -> Iterator[str]:
        off, requested = _off(counted), requested_of(self.options)
        within = f"within {self.options.tolerance} of the dense loss"
        if not training.trained.best.feasible:
            yield f"no state was {within}: the one with the lowest loss is kept, {off:.2%} of the edges off"
        elif requested is not None:
            yield f"requested {requested:.2%} off, achieved {off:.2%} {within}"
        else:
            yield f"achieved {off:.2%} off {within}"
        dead = sum(int((each.kept == 0).sum()) for each in counted.values())
        removed = sum(map(len, found.gone.values()))
        if dead:
            yield f"{dead} heads keep no edge on the calibration data" + (f", {removed} are removed" if removed else "")
        yield from found.notes

    def _edges(self, counted: Mapping[str, Tally], lowered: Mapping[str, str], context: Context) -> dict[str, Any]:
        layers = {site.path or site.kind: (site.name, site.layer) for site in self.sites}
        sites = []
        for path, each in counted.items():
            name, layer = layers.get(path, (path, None))
            sites.append({"site": name, "layer": layer, **each.document(), "lowered": lowered.get(path, "")})
        first = next(iter(counted.values()))
        return {
            "kind": "edges",
            "clause": self.clause,
            "place": self.place,
            "via": "gates",
            "normalize": normalize_of(self.options),
            "requested": requested_of(self.options),
            "achieved": _off(counted),
            "length": max(each.dense.shape[-1] for each in counted.values()),
            "rows": first.rows,
            "sites": sites,
        }

    def _trained(self, training: GateTraining) -> dict[str, Any]:
        told = training.trained.finding("gates", dense=training.dense, target=training.target)
        return told | {"clause": self.clause, "place": self.place}

    def _induction(self, written_out: GraphModule, context: Context) -> Iterator[dict[str, Any]]:
        found = induction(written_out, context.calibration, self.options.seed)
        layers = {site.path or site.kind: site.layer for site in self.sites}
        rows = [
            {"site": path, "layer": layers.get(path), "dense": dense.tolist(), "sparse": sparse.tolist()}
            for path, (dense, sparse) in found.items()
        ]
        if rows:
            yield {"kind": "induction", "clause": self.clause, "place": self.place, "sites": rows}


def _off(counted: Mapping[str, Tally]) -> float:
    """The share of the possible edges that is off, heads alike."""
    return 1 - fmean(share for each in counted.values() for share in each.share().tolist())

"""`prune 30% of token embeddings`: tokens go, from the table, from the head, and from the numbers that name them.

The tokens that stay are numbered anew, in their old order. With `ids=new` the model is fed new ids, as the tokenizer cut
with it gives them; with `ids=old` it is fed the original's and maps them itself. Scores are over the new vocabulary.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from surgery.anatomy.dimension import Obstacle
from surgery.anatomy.flops import flops_per_sample
from surgery.anatomy.graphs import attribute, is_layer, weight_of, where
from surgery.anatomy.site import Anatomy
from surgery.anatomy.sites.embedding import Embedding
from surgery.anatomy.vocabulary import Vocabulary, vocabulary_of
from surgery.diagnostics import RefusalError
from surgery.models.tokenizer_cut import alphabet_of, cut_tokenizer, merges_of
from surgery.passes.cut_vocabulary import CutVocabulary, SelectVocabulary
from surgery.passes.runner import Pass
from surgery.plan.action import Action, TensorChange
from surgery.targets.calibration import MASKS, Calibration
from surgery.targets.choice import Candidate, Choice
from surgery.targets.clause import SEARCHED, OfClause, refuse_options
from surgery.targets.context import Context
from surgery.targets.losses import IGNORED
from surgery.targets.renumbered import Renumbered, substituted
from surgery.targets.special_tokens import special_tokens, tokenizer_of, unknown_token

WRITING = ("causal-lm", "masked-lm", "seq2seq-lm")
"""Tasks whose targets are tokens."""
CRITERIA = ("auto", "frequency", "magnitude", "random")


@dataclass(frozen=True, eq=False)
class Tokens(OfClause):
    """One vocabulary that loses `remove` tokens. `options` is a `surgery.operations.prune.Prune`."""

    options: Any
    site: Embedding
    vocabulary: Vocabulary
    remove: int
    notes: tuple[str, ...]

    @property
    def left(self) -> int:
        return self.vocabulary.rows - self.remove

    def action(self, graph_module: GraphModule) -> Action:
        """The cut from shapes alone."""
        named = ("side", "by", "multiple", "seed", "ids")
        return Action(
            clause=self.clause,
            place=self.place,
            operation="prune",
            kind="embedding",
            sites=(self.site.name,),
            before={"tokens": self.vocabulary.rows},
            after={"tokens": self.left},
            tensors=tuple(self._changes(graph_module)),
            flops=self._flops(graph_module),
            notes=self.notes,
            settings={name: getattr(self.options, name) for name in named} | {"compensate": "none"},
        )

    def choose(self, anatomy: Anatomy, context: Context) -> Choice:
        """The old ids that stay, ascending. Raises RefusalError (S313) where special tokens would have to go."""
        by, told = self._criterion(context)
        held = special_tokens(context.source, self.vocabulary.rows)
        told += self._special(held)
        scores = self._scores(anatomy.graph_module, by, context)
        order = torch.argsort(scores, descending=self.options.side == "head", stable=True)
        tokenizer = tokenizer_of(context.source)
        gone = self._gone(order.tolist(), held, tokenizer)
        if by == "frequency":
            told.append(f"{int((scores[gone] > 0).sum())} of the removed tokens occur in the calibration data")
        stays = torch.ones(self.vocabulary.rows, dtype=torch.bool).index_fill(0, gone, False)
        keep, unknown = stays.nonzero()[:, 0], unknown_token(context.source)
        if self.options.ids == "new" and tokenizer:
            cut_tokenizer(tokenizer, keep.tolist())  # refused now rather than when the bundle is written
        told += self._told(unknown)
        return Choice(keep, Candidate(by, "none", 0.0), notes=tuple(told), unknown=unknown)

    def passes(self, graph_module: GraphModule, choice: Choice, context: Context) -> list[Pass]:
        """The cut; nothing when nothing is removed."""
        if not self.remove:
            return []
        remap = old_to_new(choice, self.vocabulary.rows) if self.options.ids == "old" else None
        return [CutVocabulary(self.clause, self.place, self.vocabulary, choice.keep, remap, name="prune")]

    def reference(self, graph_module: GraphModule, choice: Choice, context: Context) -> list[Pass]:
        if not self.remove:
            return []
        old = self.options.ids == "old"
        back = substituted(choice, self.vocabulary.rows) if old else choice.keep
        return [SelectVocabulary(self.clause, self.place, self.vocabulary, choice.keep, back, at_lookups=old)]

    def controls(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The criterion reversed, and three random choices."""
        if self.options.side != "random":
            other = "head" if self.options.side == "tail" else "tail"
            yield f"the {other} instead: the criterion reversed", {"side": other}
        for seed in range(3):
            yield f"random {seed}", {"side": "random", "by": "auto", "seed": seed}

    def fed(self, choice: Choice, inputs: Any) -> Any:
        """Inputs of the original as the rewritten model takes them; what stands for a removed token is fed for it."""
        return self._renumbered(None, choice).fed(inputs) if self.remove else inputs

    def as_before(self, module: nn.Module, choice: Choice) -> nn.Module:
        """The rewritten model called like the original and answering like it, to be measured beside it."""
        return self._renumbered(module, choice) if self.remove else module

    def calibrated(self, choice: Choice, calibration: Calibration) -> Calibration:
        """The same data for the cut model: ids as it is fed them, targets as its scores count them; a token that is
        gone is nobody's target."""
        if not self.remove:
            return calibration
        targets = calibration.next_tokens() if calibration.targets is None else calibration.targets
        if targets is not None and calibration.task in WRITING:
            new = old_to_new(choice, self.vocabulary.rows, standing_in=False)
            targets = new[targets.clamp_min(0)].masked_fill(targets < 0, IGNORED)
            targets = targets.masked_fill(targets < 0, IGNORED)
        return replace(calibration, inputs=self.fed(choice, calibration.inputs), targets=targets)

    def maps(self, choice: Choice) -> Mapping[str, Tensor]:
        """`old_to_new` [V] int64, -1 for what is gone, and `new_to_old` [V'] int64, by the table's name."""
        return {
            f"{self.vocabulary.table}.old_to_new": old_to_new(choice, self.vocabulary.rows, standing_in=False),
            f"{self.vocabulary.table}.new_to_old": choice.keep.clone(),
        }

    def _renumbered(self, module: nn.Module | None, choice: Choice) -> Renumbered:
        names = tuple(node.target for node in self.vocabulary.inputs)
        order = [node for node in self.vocabulary.inputs[0].graph.nodes if node.op == "placeholder"]
        places = tuple(order.index(node) for node in self.vocabulary.inputs)
        new = self.options.ids == "new"
        return Renumbered(module, choice, self.vocabulary.rows, names, places, self.vocabulary.outputs, new)

    def _criterion(self, context: Context) -> tuple[str, list[str]]:
        by = self.options.by
        if self.options.side == "random" or by == "random":
            return "random", []
        if by == "auto":
            by = "frequency" if context.calibration else "magnitude"
            return by, [] if context.calibration else ["no data to calibrate on: ranked by magnitude"]
        if by == "frequency" and context.calibration is None:
            raise RefusalError(
                "`by frequency` needs data to count tokens in, and there is none",
                code="S323",
                span=self.options.clause.span if self.options.clause else None,
                help='name some, as in `data text:"corpus.txt"`, or rank `by magnitude`',
            )
        return by, []

    def _scores(self, graph_module: GraphModule, by: str, context: Context) -> Tensor:
        """[V] float64. Of tokens that occur equally often those of the highest numbers go first: tokenizers number what
        they learnt last, from the rarest, highest."""
        rows = self.vocabulary.rows
        if by == "random":
            chance = torch.Generator().manual_seed(self.options.seed)
            return torch.randperm(rows, generator=chance).double()
        if by == "frequency":
            counts = _counts(self.vocabulary, context)
            return counts.double() - torch.arange(rows, dtype=torch.float64) / (2 * rows)
        squares = torch.zeros(rows, dtype=torch.float64)
        for name, axis in self.vocabulary.weights:
            tensor = attribute(graph_module, name).detach().double()
            squares += tensor.square().movedim(axis, 0).reshape(rows, -1).sum(1).cpu()
        return squares.sqrt()

    def _gone(self, order: Sequence[int], held: frozenset[int], tokenizer: Mapping[str, Any]) -> Tensor:
        """The first in the order that may go: no special token, no letter, nothing that a kept token is merged from."""
        merges = merges_of(tokenizer)
        free = freed(order, held | alphabet_of(tokenizer), merges, self.remove)
        if len(free) < self.remove:
            raise self._refused(len(free), len(held))
        return torch.tensor(sorted(free), dtype=torch.int64)

    def _special(self, held: frozenset[int]) -> list[str]:
        if held:
            return [f"{len(held)} special token{'s are' if len(held) > 1 else ' is'} kept"]
        return ["no special tokens are known: the model brings no config that names any"]

    def _told(self, fallback: int | None) -> list[str]:
        if self.options.ids == "new":
            return ["fed new ids: the tokenizer must be the one cut with it"]
        if fallback is None:
            return ["fed old ids: one that is gone is an error, as the model names no unknown token"]
        return [f"fed old ids: one that is gone is read as the unknown token, {fallback}"]

    def _refused(self, free: int, held: int) -> RefusalError:
        return RefusalError(
            f"{self.remove} of {self.vocabulary.rows} tokens cannot go: {held} are special",
            code="S313",
            span=self.options.clause.span if self.options.clause else None,
            help=f"remove at most {free}: letters, and parts of tokens that stay, stay as well",
        )

    def _changes(self, graph_module: GraphModule) -> Iterator[TensorChange]:
        for name, axis in self.vocabulary.weights:
            tensor = attribute(graph_module, name)
            after = list(tensor.shape)
            after[axis] = self.left
            if isinstance(tensor, nn.Parameter):
                yield TensorChange(name, tuple(tensor.shape), tuple(after), tensor.element_size())

    def _flops(self, graph_module: GraphModule) -> int:
        """The head's, in proportion."""
        names = {name for name, _ in self.vocabulary.weights}
        heads = [n for n in graph_module.graph.nodes if is_layer(n) and getattr(weight_of(n), "target", "") in names]
        return flops_per_sample(graph_module, heads) * self.remove // self.vocabulary.rows


def freed(order: Sequence[int], held: frozenset[int], merges: Sequence[tuple[int, int, int]], count: int) -> set[int]:
    """Up to `count` ids, the earliest in the order that may go: a part goes only after all that is merged from it."""
    rank = {one: place for place, one in enumerate(order)}
    parts: dict[int, list[int]] = defaultdict(list)
    uses: Counter[int] = Counter()
    for left, right, made in merges:
        parts[made] += (left, right)
        uses.update((left, right))
    ready = [rank[one] for one in order if one not in held and not uses[one]]
    heapify(ready)
    gone: set[int] = set()
    while ready and len(gone) < count:
        one = order[heappop(ready)]
        gone.add(one)
        for part in parts[one]:
            uses[part] -= 1
            if not uses[part] and part in rank and part not in held:
                heappush(ready, rank[part])
    return gone


def old_to_new(choice: Choice, rows: int, *, standing_in: bool = True) -> Tensor:
    """[V] int64: the new id of every old one; of what is gone that of the unknown token, or -1 where none stands in."""
    new = torch.full((rows,), -1, dtype=torch.int64)
    new[choice.keep] = torch.arange(len(choice.keep))
    gone = new < 0
    if standing_in and choice.unknown is not None:
        new[gone] = new[choice.unknown].clone()
    return new


def plan_vocabulary(operation: Any, anatomy: Anatomy, sites: Sequence[Embedding]) -> list[Tokens]:
    """A cut per table of tokens. Raises RefusalError: S324 where one cannot lose rows or cannot be fed new ids, S313
    where nothing would be left, S318 for an option that vocabularies have not."""
    span = operation.clause.span if operation.clause else None
    _refuse_options(operation)
    works = []
    for site in sites:
        found = vocabulary_of(anatomy.graph_module, site)
        if isinstance(found, Obstacle):
            raise _cannot(site, found, span, "prune another part of the model")
        if operation.ids == "new" and found.unclear:
            raise _cannot(site, found.unclear[0], span, "let the model map ids itself: ids=old")
        works.append(Tokens(operation, site, found, *_count(operation, site, found.rows, span)))
    shared = {name for work in works for name, _ in work.vocabulary.weights}
    if sum(len(work.vocabulary.weights) for work in works) > len(shared):
        raise _cannot(sites[-1], Obstacle(sites[-1].nodes[0], "two tables share a head"), span, "name one of them")
    return works


def _cannot(site: Embedding, found: Obstacle, span: Any, help: str) -> RefusalError:
    return RefusalError(
        f"the vocabulary of `{site.name}` cannot be cut: {where(found.node)}: {found.reason}",
        code="S324",
        span=span,
        help=help,
    )


def _refuse_options(operation: Any) -> None:
    given = {
        "by": operation.by not in CRITERIA,
        "scope": operation.scope != "shared",
        "budget": operation.budget != "site",
        "when": operation.when != "every",
        "compensate": operation.compensate not in ("auto", "none"),
    }
    help = "rank tokens `by frequency`, `by magnitude` or at `random`; leave the rest out"
    refuse_options(operation, given, "token embeddings", help)


def _count(operation: Any, site: Embedding, rows: int, span: Any) -> tuple[int, tuple[str, ...]]:
    """Tokens to remove: the share, to the nearest whole; what is kept is rounded up to the multiple."""
    asked = operation.share.of(rows)
    kept = min(ceil((rows - asked) / operation.multiple) * operation.multiple, rows)
    if asked >= rows:
        raise RefusalError(
            f"{operation.share} of {rows} tokens of `{site.name}` leaves none",
            code="S313",
            span=span,
            help=f"remove at most {rows - 1}",
        )
    notes = [SEARCHED] if operation.share.auto else []
    if kept != rows - asked:
        notes.append(f"{rows - asked} kept, rounded up to {kept}, a multiple of {operation.multiple}")
    return rows - kept, tuple(notes)


def _counts(vocabulary: Vocabulary, context: Context) -> Tensor:
    """[V] int64: how often each token occurs among the real tokens of the calibration data."""
    counts = torch.zeros(vocabulary.rows, dtype=torch.int64)
    names = [node.target for node in vocabulary.inputs]
    for inputs in context.calibration:
        for name in names:
            ids = inputs.get(name)
            if isinstance(ids, Tensor):
                masks = [inputs.get(mask) for mask in MASKS]
                real = next((m for m in masks if isinstance(m, Tensor) and m.shape == ids.shape), torch.ones_like(ids))
                known = (real != 0) & (ids >= 0) & (ids < vocabulary.rows)
                counts += torch.bincount(ids[known].flatten().cpu(), minlength=vocabulary.rows)
    return counts

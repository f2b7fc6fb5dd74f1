"""The header of an operation as a person would write it, and every way to fill it."""

from fractions import Fraction

import pytest

from surgery.diagnostics import Diagnostic, SurgeryError
from surgery.language import Clause, Comparison, Quantity, Reference, Selector, parse
from surgery.operations import (
    Phase,
    Share,
    after,
    bind,
    comparison,
    define,
    explain,
    fields_of,
    forms,
    number,
    operation,
    sentence,
    setting,
    share,
    subject,
    usage,
    whole,
    word,
)

TIMES = forms("every", "first N steps", "last N steps")


@define
class Prune:
    """Remove the least-used part of a dimension.

    before   table [V, D]           after   table [V, D'], consumers [.., D']
    refuses  a dimension that is not the class's own
    """

    phase = Phase.SHRINK
    side: str = word("tail", "head", "random", default="tail")
    share: Share = share()
    target: Selector = after("of")
    by: str = after("by", "auto", "greedy", "effect", "activation", "magnitude", default="auto")
    scope: str = setting("shared", "per-vector", default="shared")
    when: str = after("when", TIMES, default="every")
    compensate: str = setting("auto", "none", "least-squares", "refit", default="auto")
    seed: int = setting(int, default=0)

    def conflicts(self):
        if self.scope == "per-vector" and self.compensate == "least-squares":
            yield Diagnostic("S117", "a dynamic mask cannot be compensated", self.clause.span)


@define
class Everything:
    """Hold one field of every kind."""

    phase = Phase.ROUTE
    subject: Selector = subject(Selector)
    bound: Comparison | None = comparison(default=None)
    ratio: float = setting(number(at_least=0, at_most=1), default=0.5)
    times: int = setting(whole(at_least=1, at_most=9), default=1)
    on: bool = setting(bool, default=False)
    note: str = setting(str, default="")
    size: Quantity = setting(Quantity, default=Quantity(1))
    source: Reference | None = after("from", Reference, default=None)


def one(text: str, kind=Prune):
    (clause,) = parse(text).clauses
    return bind(clause, kind)


SAME = [
    "prune tail 66% of class embeddings by greedy scope=shared when last 10 steps seed=3",
    "prune 66% of class embeddings when last 10 steps by greedy seed=3",
    'prune 66% tail of class embeddings by=greedy when="last 10 steps" seed=3',
    'prune side=tail share=66% of="class embeddings" by=greedy when last 10 steps seed=3',
    'prune target="class embeddings" share=66% by greedy when last 10 steps seed=3',
    "prune: {side: tail, share: 66%, of: class embeddings, by: greedy, when: last 10 steps, seed: 3}",
    "- prune: tail 66%\n  of: class embeddings\n  by: greedy\n  when: last 10 steps\n  scope: shared\n  seed: 3.0",
]


@pytest.mark.parametrize("text", SAME)
def test_every_way_to_write_it(text):
    bound = one(text)
    assert bound.faults == ()
    assert bound.operation == Prune(
        share=Share(fraction=Fraction(66, 100)),
        target=Selector(("class", "embeddings")),
        by="greedy",
        when="last 10 steps",
        seed=3,
    )


def test_clause_and_class():
    made = one("prune 3 of class embeddings").operation
    assert made.clause.span.text == "prune 3 of class embeddings"
    assert (Prune.verb, Prune.phase, made.side, made.share) == ("prune", Phase.SHRINK, "tail", Share(count=3))
    with pytest.raises(AttributeError):
        made.side = "head"


def test_selector_takes_the_phrases_that_no_field_claims():
    made = one('prune 5% of heads [3, 5] of layer 2 in module "dec.*" except layer 7 by effect').operation
    assert made.by == "effect"
    assert made.target.text == 'heads [3, 5] of layer 2 in module "dec.*" except layer 7'
    assert made.target.span.text == made.target.text
    assert (len(made.target.within), len(made.target.but)) == (2, 1)


FAULTS = {
    "prune 6% of class embeddings scope=per-vector compensate=least-squares": "S117",
    "prune 6% of x scop=shared": "S105",
    "prune 6% of x with y": "S105",
    "prune 6% of x <= 3": "S105",
    "prune 6% of x by greedy by effect": "S106",
    "prune tail 6% of x side=head": "S106",
    "prune tail 6% of x seed=1 seed=2": "S106",
    "prune 6% of x by gready": "S107",
    "prune 6% of x seed=1.5": "S107",
    "prune 6% of x seed=3%": "S107",
    "prune 6% of x when first 0 steps": "S107",
    "prune 6% of x when first 1.5 steps": "S107",
    "prune 6% of x when first": "S107",
    "prune of x": "S108",
    "prune 6%": "S108",
    "prune 6% x": "S108",
    "prune 100.1% of x": "S109",
    "prune -1 of x": "S109",
    "prune 0.5 of x": "S109",
    "prune 2x of x": "S109",
    "prune 6% of x 3 y": "S113",
    "prune tial 6% of x": "S114",
    "prune tail head 6% of x": "S106",
    "prune 6% 7% of x": "S114",
}


@pytest.mark.parametrize(("text", "code"), FAULTS.items(), ids=FAULTS)
def test_one_fault_is_told_once_and_in_its_place(text, code):
    bound = one(text)
    assert bound.operation is None
    assert [fault.code for fault in bound.faults] == [code]
    assert bound.faults[0].span.source.text == text


KINDS = {
    "ratio=25%": ("ratio", 0.25),
    "ratio=1": ("ratio", 1.0),
    "times=9": ("times", 9),
    "on=yes": ("on", True),
    "on=false": ("on", False),
    'note="two words; and # signs"': ("note", "two words; and # signs"),
    "note=word": ("note", "word"),
    "size=2GB": ("size", Quantity(2, "GB")),
    "from zoo:x": ("source", Reference("zoo", "x")),
    "from word": ("source", Reference("", "word")),
    'from "a folder"': ("source", Reference("", "a folder")),
    "<= 1.02x": ("bound", Comparison("<=", Quantity(1.02, "x"))),
}


@pytest.mark.parametrize(("text", "value"), KINDS.items(), ids=KINDS)
def test_kinds(text, value):
    bound = one(f"everything attention {text}", Everything)
    assert bound.faults == ()
    assert getattr(bound.operation, value[0]) == value[1]
    assert one(sentence(bound.operation), Everything).operation == bound.operation


@pytest.mark.parametrize(
    "text", ["ratio=2", "ratio=-1%", "times=0", "times=10", "times=x", "on=maybe", "size=x", "from 3"]
)
def test_kinds_refuse(text):
    assert [fault.code for fault in one(f"everything attention {text}", Everything).faults] == ["S107"]


def test_share_rounds_a_half_down():
    assert Share.parse("66%").of(96) == 63
    assert Share.parse("50%").of(33) == 16
    assert Share.parse("0%").of(96) == 0
    assert Share.parse("100%").of(96) == 96
    assert Share.parse(200).of(96) == 96
    assert Share.parse(0.1) == Share.parse("10%")
    assert str(Share.parse("99.6%")) == "99.6%"


def test_sentence_reads_back():
    made = one(SAME[0]).operation
    assert sentence(made) == "prune 66% of class embeddings by greedy when last 10 steps seed=3"
    assert one(sentence(made)).operation == made


def test_usage_and_manual():
    assert usage(Prune).startswith("prune [tail|head|random] SHARE of SELECTOR [by auto|greedy|")
    manual = explain(Prune)
    assert manual.startswith("Remove the least-used part") and "refuses  a dimension" in manual
    for field in fields_of(Prune):
        assert (field.syntax.preposition or field.name) in manual or field.name in ("side", "share")


def test_what_is_no_operation():
    class NoPhase:
        """A sentence."""

    class NoDocstring:
        phase = Phase.SHRINK

    class NoSyntax:
        """A sentence."""

        phase = Phase.SHRINK
        share: int = 3

    for kind in (NoPhase, NoDocstring, NoSyntax):
        with pytest.raises(SurgeryError) as error:
            define(kind)
        assert error.value.diagnostics[0].code == "S121"


def test_verb_of_a_class():
    @define
    class CutHeads:
        """A sentence."""

        phase = Phase.SHRINK

    @define
    class Other:
        """A sentence."""

        phase = None
        verb = "my-verb"

    assert (CutHeads.verb, Other.verb) == ("cut-heads", "my-verb")
    assert callable(operation)


def test_made_in_python_has_no_clause():
    made = Prune(share=Share(count=1), target=Selector(("class", "embeddings")))
    assert made.clause is None
    assert isinstance(one("prune 1 of class embeddings").operation.clause, Clause)

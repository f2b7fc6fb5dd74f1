"""From clauses to a program."""

import pytest

from surgery.check import check, examine
from surgery.diagnostics import Source, SpecError
from surgery.language import parse, read, source_of
from surgery.operations import Phase
from surgery.operations.require import METRICS, Require

SPEC = """\
model zoo:digits-dit
require accuracy >= 95%
prune tail 66% of class embeddings
data digits samples=2000 steps=25
analyze embeddings
prune head 10% of position embeddings
require denoising loss <= 1.02x
"""


def test_order_is_by_phase_then_as_written():
    program = check(SPEC)
    assert str(program.model.reference) == "zoo:digits-dit"
    assert program.data.settings == {"samples": 2000, "seed": 0, "steps": 25}
    assert [one.phase for one in program.operations] == [Phase.ANALYZE, Phase.SHRINK, Phase.SHRINK]
    assert [one.target and one.target.text for one in program.operations] == [
        None,
        "class embeddings",
        "position embeddings",
    ]
    assert [one.text for one in program.requires] == ["require accuracy >= 95%", "require denoising loss <= 1.02x"]
    assert check(parse(SPEC)) == check(Source("piped", SPEC)) == program


def test_model_and_data_may_come_from_elsewhere():
    program = check("prune 5% of class embeddings")
    assert (program.model, program.data, program.requires) == (None, None, ())


FAULTS = {
    "": ["S119"],
    "# nothing": ["S119"],
    "model zoo:x": ["S119"],
    "prue 5% of x": ["S103"],
    "prune 5% of x; model a; model b": ["S115"],
    "prune 5% of x; data a; data b": ["S115"],
    "prune 5% of x; prune 6% of x": ["S116"],
    "prune 5% of x; prune 6% of x in layer 3": [],
    "prune 5% of x; require los <= 3": ["S118"],
    "prune 5% of x; require loss <= word": ["S107"],
    "prune 5% of x; require loss": ["S108"],
    "prune 5% of x; require <= 3x": ["S108"],
    "prune 5% of x; require loss <= 1x; require loss > 1x": ["S117"],
    "prune 5% of x; require loss <= 1x; require loss >= 1x": [],
    "prune 5% of x; require loss <= 1x; require loss > 20%": [],
    "prune % of x; prue; model a; model b": ["S101", "S103", "S115"],
    "model a b; prune 5% of x": ["S107"],
    "model 5%; prune 5% of x": ["S107"],
    "model; prune 5% of x": ["S108"],
    "data digits samples=0; prune 5% of x": ["S107"],
    "data digits sample=3; prune 5% of x": ["S105"],
    "analyze embedings": ["S114"],
}


@pytest.mark.parametrize(("text", "codes"), FAULTS.items(), ids=FAULTS)
def test_faults(text, codes):
    _, faults = examine(read(source_of(text)))
    assert [fault.code for fault in faults] == codes
    if codes:
        with pytest.raises(SpecError) as error:
            check(text)
        assert error.value.diagnostics == faults


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_can_be_required(metric):
    (one,) = check(f"analyze; require {metric} <= 1.02x").requires
    assert (one.metric, one.comparison, one.relative, str(one.limit)) == (metric, "<=", True, "1.02x")


def required(text: str) -> Require:
    return check(f"analyze; require {text}").requires[0]


HOLDS = [
    ("loss <= 1.02x", 1.02, 1.0, True),
    ("loss <= 1.02x", 1.03, 1.0, False),
    ("loss < 1x", 1.0, 1.0, False),
    ("accuracy >= 95%", 0.95, 0.99, True),
    ("accuracy >= 95%", 0.9499, 0.99, False),
    ("latency <= 20ms", 0.0199, None, True),
    ("size < 2MB", 2_000_000, None, False),
    ("parameters <= 10k", 10_000, None, True),
    ("loss <= 1x", float("nan"), 1.0, False),
    ("loss >= 1x", float("nan"), 1.0, False),
]


@pytest.mark.parametrize(("text", "measured", "before", "holds"), HOLDS)
def test_requirement(text, measured, before, holds):
    assert required(text).holds(measured, before) is holds


def test_relative_requirement_needs_the_value_before():
    with pytest.raises(ValueError, match="loss"):
        required("loss <= 1.02x").holds(1.0)

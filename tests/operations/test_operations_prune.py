"""The clause `prune`: what it says, what contradicts itself, what it cannot cut."""

import pytest
import strangers

from surgery.check import check
from surgery.diagnostics import RefusalError, SpecError
from surgery.operations import sentence
from surgery.targets.context import Context


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("scope=per-vector compensate=least-squares", "scope=per-vector masks c and changes no weight"),
        ("when first 3 steps compensate=refit", "`when first 3 steps` masks c and changes no weight"),
        ("by greedy scope=per-vector", "`by greedy` ranks coordinates for all vectors at once"),
        ("by effect scope=per-vector", "`by effect` ranks coordinates for all vectors at once"),
    ],
)
def test_contradictions_are_told_before_any_model(options, said):
    with pytest.raises(SpecError) as caught:
        check(f"prune 66% of class embeddings {options}")
    (fault,) = caught.value.diagnostics
    assert fault.code == "S122" and said in fault.message and fault.span.text.startswith("prune") and fault.help


@pytest.mark.parametrize(
    ("options", "said"),
    [("scope=per-vector", "a random support is one for all"), ("by greedy", "ranks nothing, and `by greedy` does")],
)
def test_random_ranks_nothing(options, said):
    with pytest.raises(SpecError) as caught:
        check(f"prune random 66% of class embeddings {options}")
    assert said in caught.value.diagnostics[0].message


def test_all_contradictions_are_told_at_once():
    with pytest.raises(SpecError) as caught:
        check("prune random 66% of class embeddings by greedy scope=per-vector compensate=least-squares")
    assert len(caught.value.diagnostics) == 4


def test_other_targets_are_refused():
    with pytest.raises(RefusalError, match="prune cannot cut") as caught:
        strangers.works_of(strangers.anatomy_of("Parallel"), "prune 30% of embeddings")
    assert caught.value.diagnostics[0].code == "S314"


PLAIN = {
    "prune 2 layers by similarity": "prune 2 of layers by similarity",
    "prune 2 heads of layer 2": '  prune 2 of "heads of layer 2"',
    "prune layers [3, 5]": "prune 100% of layers [3, 5]",
    "prune layer 3": "prune 100% of layer 3",
    "prune layers 3..5 except layer 4": "prune 100% of layers 3..5 except layer 4",
    "prune heads [3, 5] of layer 2": 'prune 100% of "heads [3, 5] of layer 2"',
}


@pytest.mark.parametrize(("short", "full"), PLAIN.items(), ids=PLAIN)
def test_a_count_and_numbers_need_no_preposition(short, full):
    (one,), (other,) = check(short).operations, check(full).operations
    assert one == other


@pytest.mark.parametrize("text", ["prune tial 3 of x", "prune 3 tial of x"])
def test_a_slip_is_still_a_slip(text):
    with pytest.raises(SpecError) as caught:
        check(text)
    assert [fault.code for fault in caught.value.diagnostics] == ["S114"]


def test_defaults_are_the_quickstarts():
    (operation,) = check("prune 66% of class embeddings").operations
    told = (operation.side, operation.by, operation.scope, operation.when, operation.compensate, operation.multiple)
    assert told == ("tail", "auto", "shared", "every", "auto", 1)
    assert sentence(operation) == "prune 66% of class embeddings"


def test_random_supports_differ_by_seed():
    anatomy = strangers.anatomy_of("Plain")
    kept = [
        strangers.works_of(anatomy, f"prune random 50% of class embeddings compensate=none seed={seed}")[0]
        .choose(anatomy, Context())
        .keep.tolist()
        for seed in (0, 0, 1)
    ]
    assert kept[0] == kept[1] != kept[2] and all(len(keep) == 8 for keep in kept)

import pytest

from surgery.diagnostics import SurgeryError
from surgery.report.document import finding, validate


def test_sample_and_least_reports_are_valid(sample, bare):
    validate(sample)
    validate(bare)


FAULTS = [
    ("`format` is 'surgery.plan/1'", lambda d: d | {"format": "surgery.plan/1"}),
    ("a list instead of an object", lambda d: [d]),
    ("`model` is missing", lambda d: {k: v for k, v in d.items() if k != "model"}),
    ("`quality` is missing", lambda d: {k: v for k, v in d.items() if k != "quality"}),
    ("`parity` is no list", lambda d: d | {"parity": {}}),
    ("`actions[0]` is no object", lambda d: d | {"actions": ["prune"]}),
    ("`requirements[1].holds` is missing", lambda d: d | {"requirements": [d["requirements"][0], {"text": "x"}]}),
    ("`quality[0].after` is 'low'", lambda d: d | {"quality": [d["quality"][0] | {"after": "low"}]}),
    ("`size.bytes.after` is missing", lambda d: d | {"size": {"bytes": {"before": 1}}}),
]


@pytest.mark.parametrize(("message", "change"), FAULTS, ids=[f[0] for f in FAULTS])
def test_faults_name_their_place(sample, message, change):
    with pytest.raises(SurgeryError) as caught:
        validate(change(sample))
    assert message in str(caught.value)
    assert caught.value.diagnostics[0].code == "S690"


def test_all_faults_are_told(sample):
    sample["quality"][0].pop("before")
    sample["parity"][1].pop("holds")
    with pytest.raises(SurgeryError) as caught:
        validate(sample)
    assert caught.value.diagnostics[0].notes == ("`quality[0].before` is missing",)


def test_finding_by_kind(sample, bare):
    assert finding(sample, "samples")["kind"] == "samples"
    assert finding(sample, "circuits") is None
    assert finding(bare, "samples") is None

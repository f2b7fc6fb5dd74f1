"""Every file in `specs/` is checked, planned and applied, with tiny sample counts."""

import re

import pytest

import surgery
from surgery.diagnostics import Source, UnprovenError
from surgery.language import source_of
from surgery.layout import shelf

SPECS = sorted(path for path in shelf("specs").iterdir() if path.suffix in (".surgery", ".yaml"))
SHIPPED = [path for path in SPECS if "model hf:" not in path.read_text(encoding="utf-8")]
"""The others need a model from elsewhere and have tests of their own."""
FEW = {
    r"samples=\d+": "samples=6 steps=2",
    r"data tasks .*": "data tasks samples=24 calibration=16",
    r"data stdlib .*": "data stdlib samples=8 length=256 calibration=4",
    r"(?<!samples=6 )steps=\d+": "steps=2",
    r"batch=\d+": "batch=4",
}
"""What a spec asks for, and what is enough to see that it runs."""
ON_SAMPLES = ("accuracy", "frechet", "loss", "denoising loss", "paired error")


def quick(path) -> Source:
    """The spec with few samples, few sampling steps and few steps of training."""
    text = path.read_text(encoding="utf-8")
    for pattern, few in FEW.items():
        text = re.sub(pattern, few, text)
    return Source(path.name, text)


def test_there_are_specs():
    assert {"quickstart.surgery", "sit.yaml"} <= {path.name for path in SPECS}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_it_says_what_it_is_in_a_comment_and_is_well_written(path):
    assert path.read_text(encoding="utf-8").startswith("# ")
    program = surgery.check(source_of(path))
    assert program.model and program.operations
    if path.suffix == ".surgery":
        assert surgery.format(program.spec).splitlines()[0] == path.read_text().splitlines()[0]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_it_is_planned_and_applied(path, tmp_path):
    spec = quick(path)
    plan = surgery.plan(None, spec)
    assert plan.actions or any(operation.verb == "analyze" for operation in surgery.check(spec).operations)
    try:
        result = surgery.apply(spec, tmp_path / "bundle", timing=False, controls=False)
    except UnprovenError as error:
        report = error.report
    else:
        report = result.report
    assert all(row["holds"] for row in report["parity"]) and bool(report["parity"]) == bool(plan.actions)
    broken = [row["text"] for row in report["requirements"] if not row["holds"]]
    assert all(text.split()[1] in ON_SAMPLES for text in broken), "six samples may scatter, sizes may not"
    planned, done = plan.document()["size"]["parameters"], report["size"]["parameters"]
    assert planned["after"] == done["after"]
    assert (tmp_path / "bundle").exists() == (not broken)

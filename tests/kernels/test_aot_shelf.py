"""What ships, compiled ahead under the installed Triton: every rule holds, and nothing grew unseen.

All of sm90, whatever else is in the cache, whatever is not recorded yet, and of the other architectures those that
came nearest to the limits when last recorded: a cold run of these stays in minutes. What is left out is said in a
warning; `python -m surgery.kernels.aot --check` leaves out nothing.
"""

import os
import warnings

import pytest
from surgery.kernels.aot import cache, golden, manifest
from surgery.kernels.aot.pool import Pool
from surgery.kernels.aot.survey import surveyed
from surgery.kernels.aot.table import complaints
from surgery.kernels.aot.targets import TARGETS

triton = pytest.importorskip("triton", reason="Triton ships for Linux")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shelf():
    """The rows, and whether they are all there are."""
    record, left = golden.read(), []
    if not record["used"]:
        pytest.skip(f"nothing is recorded yet, and all of it cold takes half an hour: {golden.COMMAND}")
    nearest = golden.nearest(record)

    def keep(entry):
        new = entry.title not in record["used"]
        if entry.arch == "sm90" or entry.fault or new or entry.title in nearest or cache.find(entry.key):
            return True
        left.append(entry)
        return False

    with Pool(os.cpu_count() or 1) as pool:
        rows = surveyed(pool, list(TARGETS), keep=keep)
    if left:
        warnings.warn(f"{len(left)} of {len(left) + len(rows)} compilations left to {golden.CHECK}", stacklevel=2)
    return rows, not left


def test_every_compilation_holds_every_rule(shelf):
    assert complaints(shelf[0]) == []


@pytest.mark.parametrize("arch", TARGETS)
def test_every_kernel_file_ships_for_every_architecture(shelf, arch):
    assert {row.entry.file for row in shelf[0] if row.entry.arch == arch} == set(manifest.files())


def test_nothing_uses_more_than_was_recorded(shelf):
    rows, whole = shelf
    record = golden.read()
    if record["triton"] != triton.__version__:
        pytest.skip(f"recorded under Triton {record['triton']}, this is {triton.__version__}")
    said = golden.differences(rows, record, whole)
    assert said == [], f"if that is meant: {golden.COMMAND}"

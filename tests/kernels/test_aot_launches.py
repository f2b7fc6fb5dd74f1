"""What launchers launch is what is compiled ahead: no variant is first met on a GPU, none is compiled for nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import surgery
from surgery.kernels.aot import manifest
from surgery.kernels.aot.manifest import Compilation
from surgery.kernels.aot.targets import TARGETS

pytest.importorskip("triton", reason="Triton ships for Linux")


@pytest.fixture(scope="module")
def launched():
    """Architecture → variants, from a process in which Triton does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(surgery.__file__).parents[1])
    script = Path(__file__).with_name("launched.py")
    command = [sys.executable, script, *TARGETS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def variant(compilation: Compilation) -> str:
    """As `launched.py` says it. Sizes and strides are arguments, of whatever value, but for head dims: odd or not."""
    pointers = {name: kind for name, kind in compilation.signature.items() if kind.startswith("*")}
    fixed = {name: int(value) for name, value in compilation.constexprs.items()}
    fixed["odd"] = "dim" in compilation.signature and "dim" not in compilation.aligned
    launch = (compilation.num_warps, compilation.num_stages, dict(compilation.options))
    return json.dumps([compilation.kernel, pointers, fixed, *launch], sort_keys=True)


@pytest.mark.parametrize("arch", TARGETS)
def test_every_variant_that_is_launched_is_compiled_ahead_and_no_other(arch, launched):
    listed = [variant(each) for each in manifest.compilations(arch)]
    assert len(listed) == len(set(listed))
    assert sorted(set(launched[arch]) - set(listed)) == []
    assert sorted(set(listed) - set(launched[arch])) == []

"""Every example runs as a person would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").iterdir())
SAYS = {
    "command_line.sh": "masked == compacted",
    "compile_from_python.py": "reload bit-identical: True",
    "inspect_graph.py": "nodes were touched; the first by `prune tail 66% of class embeddings`",
    "own_operation.py": "proven: True",
}


def test_every_example_is_held_to_something():
    assert {path.name for path in EXAMPLES if path.is_file()} == set(SAYS)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_example_runs(name, tmp_path):
    runner = ["bash"] if name.endswith(".sh") else [sys.executable]
    arguments = [str(tmp_path / "out")] if name in ("command_line.sh", "compile_from_python.py") else []
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*runner, str(ROOT / "examples" / name), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout

"""Planning without weights at the width of a 70B model: repeats are followed once, in bounded time and memory."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import strangers
import torch

from surgery.anatomy import Anatomy, inspect

transformers = pytest.importorskip("transformers")
SPECS = ("prune 25% of mlp channels", "prune 25% of attention heads")
SECONDS, GIGABYTES = 90, 2


def anatomy_of(layers: int) -> Anatomy:
    with torch.device("meta"):
        config = transformers.LlamaConfig(
            hidden_size=8192,
            intermediate_size=28672,
            num_attention_heads=64,
            num_key_value_heads=8,
            vocab_size=128256,
            num_hidden_layers=layers,
        )
        model = transformers.LlamaForCausalLM(config).eval()
    return inspect(model, {"input_ids": torch.zeros(2, 8, dtype=torch.int64), "use_cache": False})


def peak_gigabytes() -> float:
    """The most memory that this process held. Not `ru_maxrss`: on Linux a child takes over its parent's, fork to exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1e6


def planned(anatomy: Anatomy) -> list[dict[str, int]]:
    """What is left of every site: channels, or heads and key-value heads."""
    works = [work for spec in SPECS for work in strangers.works_of(anatomy, spec)]
    return [dict(work.action(anatomy.graph_module).after) for work in works]


def test_blocks_that_repeat_are_followed_once():
    anatomy = anatomy_of(4)
    works = [strangers.works_of(anatomy, spec) for spec in SPECS]
    assert [[work.coupling.repeated for work in each] for each in works] == [[False, True, True, True]] * 2
    assert planned(anatomy) == [{"width": 21504}] * 4 + [{"heads": 48, "kv_heads": 6}] * 4


@pytest.mark.slow
def test_eighty_layers_on_meta_in_bounded_time_and_memory():
    """In a process of its own, as memory is counted per process. The time is the processor's, not the wall's."""
    tests = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join(map(str, (tests.parent, tests)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    told = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True, env=environment)
    seconds, gigabytes, sites = told.stdout.split()
    assert int(sites) == 160 and float(gigabytes) < GIGABYTES and float(seconds) < SECONDS


if __name__ == "__main__":
    count = len(planned(anatomy_of(80)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(used.ru_utime + used.ru_stime, peak_gigabytes(), count)

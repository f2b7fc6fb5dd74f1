"""What an architecture does at best, kernel by kernel: the numbers that the cost model reads."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ceilings:
    """Rates of one processor (a core of a CPU, a whole GPU).

    dense, tiles   FLOP/s of attention under a mask tensor, and of attention over blocks, by dtype
    edges          FLOP/s of attention over single edges
    stream         bytes/s of memory read in order
    gather         bytes/s of key and value rows read in any order
    overhead       seconds that a call takes before it does anything, by layout
    source         where the numbers are from
    """

    dense: Mapping[str, float]
    tiles: Mapping[str, float]
    edges: float
    stream: float
    gather: float
    overhead: Mapping[str, float]
    source: str


CEILINGS = {
    # One core of a Zen 5 with AVX-512, S = 2048, H = 2, D 64 and 128, best of five calls on the clock of the process.
    "cpu": Ceilings(
        dense={"fp32": 65e9, "bf16": 65e9},
        tiles={"fp32": 85e9, "bf16": 150e9},
        edges=40e9,
        stream=34e9,
        gather=62e9,
        overhead={"dense": 15e-6, "block": 75e-6, "bitmask": 75e-6, "edge": 47e-6},
        source="measured, one core",
    ),
    # An H200: 4.3 TB/s; 395 TFLOP/s is what a dense Triton kernel reaches, 400 what block kernels aim at. fp32 in IEEE
    # precision has no tensor cores: three quarters of 67 TFLOP/s.
    "sm90": Ceilings(
        dense={"fp32": 50e12, "fp16": 395e12, "bf16": 395e12},
        tiles={"fp32": 50e12, "fp16": 400e12, "bf16": 400e12},
        edges=50e12,
        stream=4.3e12,
        gather=4.3e12,
        overhead=dict.fromkeys(("dense", "block", "bitmask", "edge"), 10e-6),
        source="calculated for an H200, not measured",
    ),
}


def ceilings(architecture: str) -> Ceilings:
    """The numbers of an architecture; a GPU without its own has the H200's, whose proportions it shares."""
    if architecture in CEILINGS:
        return CEILINGS[architecture]
    return CEILINGS["cpu" if architecture == "interpreter" else "sm90"]

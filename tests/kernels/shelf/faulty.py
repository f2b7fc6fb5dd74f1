"""The same product, each time with one thing wrong; what is wrong is the label."""

import importlib.util
from pathlib import Path

import triton
import triton.language as tl

spec = importlib.util.spec_from_file_location("surgery_test_sound", Path(__file__).with_name("sound.py"))
sound = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sound)


@triton.jit
def refused(a, b, out, depth, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    tl.static_assert(ROWS == 0, "no tile is small enough")


product = sound.product


def compilations(arch):
    def tile(*sizes, **more):
        return sound.tile(*sizes, **{"kernel": "faulty:product", **more})

    yield tile(
        128,
        256,
        32,
        2 if arch == "gfx942" else 4,
        2,
        label="spills",
        options={} if arch == "gfx942" else {"maxnreg": 64},
    )
    yield tile(128, 256, 64, 8, 5, label="shared")
    yield tile(16, 64, 32, 4, 2, label="no wgmma")
    yield tile(64, 64, 32, 2, 2, label="too few warps for wgmma", expects={})
    yield tile(64, 64, 32, 4, 2, label="unaligned", aligned=())
    yield tile(64, 64, 32, 4, 2, label="refused", kernel="faulty:refused")
    yield tile(64, 64, 32, 4, 2, label="bad argument", aligned=("c",))
    yield tile(32, 64, 32, 4, 2, label="twice", expects={})
    yield tile(16, 64, 32, 4, 2, label="twice", expects={})

"""Tile products with one thing wrong each; the label says what."""

import triton
import triton.language as tl
from surgery.kernels.aot.manifest import Compilation


@triton.jit
def product(a, b, out, depth, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    rows, columns, inner = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, STEP)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, depth, STEP):
        left = tl.load(a + rows[:, None] * depth + start + inner[None, :])
        right = tl.load(b + (start + inner)[:, None] * COLUMNS + columns[None, :])
        sums = tl.dot(left, right, sums, input_precision="ieee")
    tl.store(out + rows[:, None] * COLUMNS + columns[None, :], sums)


@triton.jit
def refused(a, b, out, depth, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    tl.static_assert(ROWS == 0, "no tile is small enough")


def tile(rows, columns, step, warps, stages, label, function="product", dtype="bf16", **more):
    signature = {"a": f"*{dtype}", "b": f"*{dtype}", "out": "*fp32", "depth": "i32"}
    sizes = {"ROWS": rows, "COLUMNS": columns, "STEP": step}
    signature.update(dict.fromkeys(sizes, "constexpr"))
    more.setdefault("aligned", ("a", "b", "out", "depth"))
    return Compilation(f"faulty:{function}", signature, sizes, warps, stages, label=label, **more)


def compilations(arch):
    tight = {"waves_per_eu": 8} if arch == "gfx942" else {"maxnreg": 40}
    yield tile(128, 64, 16, 4, 1, "spills", dtype="fp32", options=tight)
    yield tile(16, 16, 512, 4, 4 if arch == "gfx942" else 9, "shared")
    yield tile(16, 16, 16, 4, 1, "unaligned", aligned=())
    yield tile(16, 16, 16, 4, 1, "refused", function="refused")
    if arch == "gfx942":
        return
    yield tile(16, 64, 32, 4, 2, "wgmma promised", expects={"sm90": ("wgmma",)})
    yield tile(64, 32, 32, 2, 2, "wgmma possible")
    if arch == "sm80":
        return
    yield tile(16, 16, 16, 4, 1, "absent", function="absent")
    yield tile(16, 16, 16, 4, 1, "no such argument", aligned=("c",))
    yield tile(16, 16, 16, 4, 1, "twice")
    yield tile(16, 32, 16, 4, 1, "twice")

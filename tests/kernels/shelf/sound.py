"""A kernel that breaks no rule: a tile product with 64 rows."""

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


def tile(rows, columns, step, warps, stages, dtype="bf16", **more):
    signature = {"a": f"*{dtype}", "b": f"*{dtype}", "out": "*fp32", "depth": "i32"}
    sizes = {"ROWS": rows, "COLUMNS": columns, "STEP": step}
    more = {"aligned": ("a", "b", "out", "depth"), "expects": {"sm90": ("wgmma",)}, **more}
    kernel = more.pop("kernel", "sound:product")
    return Compilation(kernel, {**signature, **dict.fromkeys(sizes, "constexpr")}, sizes, warps, stages, **more)


def compilations(arch):
    yield tile(64, 64, 32, 4, 2)

"""What the interpreter does not show: the shelf's tests and the harness are built around each of these."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from surgery.kernels.aot.pool import environment

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter")


@triton.jit
def multiply(a, b, out, ROWS: tl.constexpr, INNER: tl.constexpr):
    rows, inner = tl.arange(0, ROWS), tl.arange(0, INNER)
    left = tl.load(a + rows[:, None] * INNER + inner[None, :])
    right = tl.load(b + inner[:, None] * ROWS + rows[None, :])
    tl.store(out + rows[:, None] * ROWS + rows[None, :], tl.dot(left, right, input_precision="ieee"))


def product(dtype, rows=16, inner=16):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, inner), (inner, rows)))
    out = torch.zeros(rows, rows)
    multiply[(1,)](a, b, out, ROWS=rows, INNER=inner)
    return out, a.float() @ b.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_products_of_fp32_and_fp16_are_right(dtype):
    out, right = product(dtype)
    assert torch.allclose(out, right, atol=1e-4)


def test_products_of_bf16_are_not_so_they_are_tested_on_a_gpu_alone():
    out, right = product(torch.bfloat16)
    if torch.allclose(out, right, atol=1e-1):
        pytest.fail("this Triton multiplies bf16 in its interpreter: test bf16 there from now on")


def test_it_accepts_a_product_too_small_for_a_gpu_so_every_row_is_compiled_too():
    out, right = product(torch.float32, rows=8, inner=2)
    assert torch.allclose(out, right, atol=1e-4)


def test_workers_of_the_harness_compile_though_this_process_interprets(tmp_path):
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert "TRITON_INTERPRET" not in environment(str(tmp_path))


@pytest.mark.parametrize("module", ["surgery.kernels.aot.survey", "surgery.kernels.tuning.__main__"])
def test_the_harness_and_the_tuner_load_no_triton_themselves(module):
    code = f"import sys, {module}, torch; assert 'triton' not in sys.modules; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

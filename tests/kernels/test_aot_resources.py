"""What compilers say is read exactly, and text that says nothing never passes for a kernel without spills."""

import pytest
from surgery.kernels.aot.resources import Resources, count_instructions, read_amdgcn, read_ptxas, slow_dots

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'forward' for 'sm_90a'
ptxas info    : Function properties for forward
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {stack} bytes cumulative stack size
"""
AMDGCN = """\
    .agpr_count:     0
    .group_segment_fixed_size: 1024
    .private_segment_fixed_size: 24
    .sgpr_count:     30
    .sgpr_spill_count: 3
    .vgpr_count:     230
    .vgpr_spill_count: 5
"""
PTX = """\
wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%f1}, %rd1, %rd2, p, 1, 1, 0, 1;
wgmma.commit_group.sync.aligned;
mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 { %r1 }, { %r2 }, { %r3 }, { %r4 };
@%p1 cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;
cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x8;
cp.async.commit_group;
cp.async.wait_group 0;
"""
TTGIR = """\
%1 = tt.dot %a, %b, %c : tensor<{rows}x32x{dtype}, #ttg.dot_op<{{opIdx = 0}}>> * tensor<32x64x{dtype}, #b> -> tensor<{rows}x64xf32, #m>
%2 = ttng.warp_group_dot %d, %e, %f : tensor<128x32xbf16> * tensor<32x64xbf16> -> tensor<128x64xf32>
"""


def test_ptxas_spills_are_the_larger_of_stores_and_loads():
    log = PTXAS.format(stack=112, stores=108, loads=140, registers=255)
    assert read_ptxas(log) == (255, 140, 112)


def test_ptxas_reports_the_worst_of_several_functions():
    logs = [
        PTXAS.format(stack=0, stores=0, loads=0, registers=96),
        PTXAS.format(stack=8, stores=8, loads=8, registers=40),
    ]
    assert read_ptxas("".join(logs)) == (96, 8, 8)


@pytest.mark.parametrize("log", ["", "ptxas info    : Used 96 registers", "0 bytes stack frame, 0 bytes spill stores"])
def test_a_log_that_does_not_say_is_an_error(log):
    with pytest.raises(ValueError, match="did not say"):
        read_ptxas(log)


def test_amdgcn_metadata():
    expected = {"registers": 230, "spill_bytes": 20, "stack_bytes": 24, "scalar_spills": 3, "shared": 1024}
    assert read_amdgcn(AMDGCN) == expected


@pytest.mark.parametrize("field", ["vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"])
def test_amdgcn_without_a_figure_is_an_error(field):
    with pytest.raises(ValueError, match=field):
        read_amdgcn("\n".join(line for line in AMDGCN.splitlines() if f".{field}:" not in line))


def test_instructions_are_told_apart():
    assert count_instructions(PTX) == {"wgmma": 1, "mma": 1, "mfma": 0, "cp.async": 2}
    assert count_instructions("v_mfma_f32_32x32x8_bf16 a[0:15], v[0:1], v[2:3], a[0:15]")["mfma"] == 1


@pytest.mark.parametrize(
    ("rows", "dtype", "found"),
    [("64", "bf16", ("64x32xbf16",)), ("2x128", "f16", ("2x128x32xf16",)), ("32", "bf16", ()), ("64", "f32", ())],
)
def test_tall_half_dots_that_stayed_generic(rows, dtype, found):
    assert slow_dots(TTGIR.format(rows=rows, dtype=dtype)) == found


def test_resources_survive_json():
    used = Resources(96, 0, 0, 0, 1024, {"wgmma": 2}, ("64x32xbf16",), 1.5)
    assert Resources.from_json(used.to_json()) == used

"""Every shipped table is well-formed and reachable, and what is malformed is refused."""

import json

import pytest
import torch
from surgery.kernels.tuning import Config, pick, shipped
from surgery.kernels.tuning.pick import ARCHITECTURES, INTERPRETER, TABLES, architecture, dtype_name, substituted
from surgery.kernels.tuning.tables import ARCHS, as_json, faults, row_faults, write

NAMES = sorted(path.stem for path in TABLES.glob("*.json"))
DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}
ROW = {"dtype": "bf16", "dim": 64, "tile": "q", "blocks": {"ROWS": 64}, "num_warps": 4, "num_stages": 2, "options": {}}


def test_there_are_tables():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_table_has_no_fault(name):
    assert faults(json.loads((TABLES / f"{name}.json").read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arch", ARCHS)
def test_pick_reaches_every_shipped_row(name, arch):
    rows = shipped(name, arch)
    assert rows
    assert [row for row in rows if pick(name, arch, DTYPES[row.dtype], row.dim, row.tile) != row] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_serves_the_same_dtypes_and_tiles(name, arch):
    def served(arch):
        return {(row.dtype, row.tile) for row in shipped(name, arch)}

    assert served(arch) == served("sm90")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dtype": "int8"}, "dtype int8"),
        ({"dim": 100}, "dim 100"),
        ({"dim": 0}, "dim 0"),
        ({"blocks": {"ROWS": 48}}, "powers of two"),
        ({"num_warps": 3}, "num_warps 3"),
        ({"num_stages": 0}, "num_stages 0"),
        ({"blocks": {"NNZ": 64}}, "keyed by how much"),
        ({"nnz": 64}, "unknown: nnz"),
    ],
)
def test_a_malformed_row_is_named(change, said):
    assert row_faults(ROW, "sm90") == []
    assert any(said in fault for fault in row_faults({**ROW, **change}, "sm90"))


def test_amd_takes_two_stages_at_most():
    assert row_faults({**ROW, "num_stages": 3}, "sm90") == []
    assert row_faults({**ROW, "num_stages": 3}, "gfx942") == ["num_stages 3"]


def whole(**more):
    return {**{arch: [ROW] for arch in ARCHS}, **more}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (whole(sm70=[ROW]), "sm70: not an architecture"),
        (whole(sm80=[]), "sm80: no rows"),
        (whole(sm80=[ROW, ROW]), "two rows for bf16 64 q"),
        (whole(measured={"sm90": {"gpu": "x"}}), "measured.sm90"),
    ],
)
def test_a_malformed_table_is_refused_and_not_written(table, said, tmp_path):
    assert any(said in fault for fault in faults(table))
    with pytest.raises(ValueError, match=said.split()[0]):
        write(tmp_path / "table.json", table)
    assert list(tmp_path.iterdir()) == []


def test_a_table_is_read_back_as_written(tmp_path):
    written = whole(measured={"sm90": {"gpu": "g", "versions": {}, "date": "2026-01-01", "command": "c"}})
    write(tmp_path / "table.json", written)
    assert json.loads((tmp_path / "table.json").read_text()) == written
    assert as_json(Config(**ROW)) == ROW


ROWS = (
    Config("bf16", 64, "q", {"ROWS": 64}, 4, 2),
    Config("bf16", 128, "q", {"ROWS": 32}, 4, 2),
    Config("bf16", 128, "decode", {"ROWS": 16}, 4, 2),
    Config("fp32", 128, "q", {"ROWS": 16}, 4, 2),
)


@pytest.mark.parametrize(
    ("dtype", "dim", "tile", "row"),
    [
        (torch.bfloat16, 64, "q", 0),
        (torch.bfloat16, 16, "q", 0),
        (torch.bfloat16, 80, "q", 1),
        (torch.bfloat16, 32, "decode", 2),
        (torch.float16, 64, "q", 0),
        (torch.float32, 64, "q", 3),
    ],
)
def test_pick_takes_the_smallest_row_that_holds_the_dim(dtype, dim, tile, row):
    with substituted("block_attention", "sm90", ROWS):
        assert pick("block_attention", "sm90", dtype, dim, tile) == ROWS[row]


@pytest.mark.parametrize(
    ("dtype", "dim", "tile"),
    [(torch.bfloat16, 256, "q"), (torch.float32, 16, "decode"), (torch.bfloat16, 16, "other")],
)
def test_pick_says_what_it_has_no_row_for(dtype, dim, tile):
    with substituted("block_attention", "sm90", ROWS):
        with pytest.raises(LookupError, match=f"{dtype_name(dtype)}, dim {dim}, tile {tile}"):
            pick("block_attention", "sm90", dtype, dim, tile)


def test_substituted_rows_end_with_the_block_even_when_it_raises():
    before = shipped("block_attention", "sm90")
    with pytest.raises(KeyError), substituted("block_attention", "sm90", ROWS):
        with substituted("block_attention", "sm90", ROWS[:1]):
            assert shipped("block_attention", "sm90") == ROWS[:1]
        assert shipped("block_attention", "sm90") == ROWS
        raise KeyError
    assert shipped("block_attention", "sm90") == before


def test_the_interpreter_has_its_own_rows(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert architecture(torch.device("cuda")) == INTERPRETER
    assert architecture(torch.device("cpu")) == INTERPRETER

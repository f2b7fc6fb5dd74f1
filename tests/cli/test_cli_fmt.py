"""`surgery fmt`: canonical form, whole or not at all."""

import io
import json
import os
import stat
import sys
from types import SimpleNamespace

import pytest

from surgery.cli import main

LOOSE = "# top\nprune   tail 66% of class embeddings scope=shared by=greedy seed=1 # cut\n\n\nanalyze"
CANONICAL = """\
# top
prune tail 66% of class embeddings by greedy scope=shared seed=1  # cut

analyze
"""
YAML = """\
steps:
  # top
  - prune: tail 66%  # cut
    of: class embeddings
    by: greedy
    scope: shared
    seed: 1

  - analyze
"""


@pytest.fixture
def loose(tmp_path):
    path = tmp_path / "loose.surgery"
    path.write_text(LOOSE)
    return path


def test_writes_the_canonical_form(loose, capsys):
    loose.chmod(0o640)
    assert main(["fmt", str(loose)]) == 0
    assert loose.read_text() == CANONICAL
    assert stat.S_IMODE(loose.stat().st_mode) == 0o640
    assert capsys.readouterr().err == f"formatted {loose}\n"
    assert main(["fmt", str(loose)]) == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in loose.parent.iterdir()] == ["loose.surgery"]


def test_check_and_diff_write_nothing(loose, capsys):
    assert main(["fmt", "--check", str(loose)]) == 1
    assert capsys.readouterr().err == f"would format {loose}\n"
    assert main(["fmt", "--diff", str(loose)]) == 0
    told = capsys.readouterr().out
    assert "\n+prune tail 66% of class embeddings by greedy scope=shared seed=1  # cut\n" in told
    assert main(["fmt", "--check", "--diff", str(loose)]) == 1
    assert capsys.readouterr().out == told
    assert loose.read_text() == LOOSE


def test_to_yaml_and_back(loose, tmp_path, capsys):
    assert main(["fmt", "--to", "yaml", str(loose)]) == 0
    told = capsys.readouterr().out
    assert told == YAML
    yaml = tmp_path / "loose.yaml"
    yaml.write_text(told)
    assert main(["fmt", "--check", str(yaml)]) == 0
    assert main(["fmt", "--to", "text", str(yaml)]) == 0
    assert capsys.readouterr().out == CANONICAL
    assert loose.read_text() == LOOSE


def test_standard_input(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(LOOSE.encode())))
    assert main(["fmt", "-"]) == 0
    assert capsys.readouterr().out == CANONICAL


def test_line_ends_and_mark_are_normalised(tmp_path):
    path = tmp_path / "x.surgery"
    path.write_bytes(b"\xef\xbb\xbfanalyze\r\n")
    assert main(["fmt", "--check", str(path)]) == 1
    assert main(["fmt", str(path)]) == 0
    assert path.read_bytes() == b"analyze\n"


def test_a_faulty_file_stays_and_the_others_are_formatted(loose, tmp_path, capsys):
    broken = tmp_path / "broken.surgery"
    broken.write_text("prune  tail % of x\n")
    assert main(["fmt", str(broken), str(loose), str(tmp_path)]) == 1
    assert broken.read_text() == "prune  tail % of x\n"
    assert loose.read_text() == CANONICAL
    err = capsys.readouterr().err
    assert "S101" in err and "S010" in err


def test_unknown_operations_are_formatted_too(tmp_path):
    path = tmp_path / "x.surgery"
    path.write_text("frobnicate   a=1   by b")
    assert main(["fmt", str(path)]) == 0
    assert path.read_text() == "frobnicate by b a=1\n"


def test_json(loose, capsys):
    assert main(["fmt", "--json", "--check", str(loose)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["changed"], told["diagnostics"]) == ("surgery.fmt/1", [str(loose)], [])


def test_a_failed_write_keeps_the_file(loose, monkeypatch, capsys):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["fmt", str(loose)]) == 1
    assert f"error[S013]: cannot write `{loose}`: no space left on device" in capsys.readouterr().err
    assert loose.read_text() == LOOSE
    assert [path.name for path in loose.parent.iterdir()] == ["loose.surgery"]


def test_a_link_stays_a_link(loose, tmp_path):
    link = tmp_path / "link.surgery"
    link.symlink_to(loose)
    assert main(["fmt", str(link)]) == 0
    assert link.is_symlink() and loose.read_text() == CANONICAL


def test_json_specs_are_read_and_not_rewritten(tmp_path, capsys):
    path = tmp_path / "x.json"
    path.write_text('{"steps": [{"prune": "5%", "of": "class embeddings"}]}')
    assert main(["check", "-q", str(path)]) == 0
    assert main(["fmt", str(path)]) == 1
    assert "S013" in capsys.readouterr().err and path.read_text().startswith("{")
    assert main(["fmt", "--to", "text", str(path)]) == 0
    assert capsys.readouterr().out == "prune 5% of class embeddings\n"

"""Files a person may hand over by mistake, and texts in every shape an editor leaves them."""

import os

import pytest

from surgery.diagnostics import SpecError
from surgery.language import parse, source_of_bytes

CLAUSE = "prune tail 66% of class embeddings"

SAME = {
    "byte order mark": f"\ufeff{CLAUSE}\n",
    "carriage returns": f"{CLAUSE}\r\n",
    "old carriage returns": f"{CLAUSE}\r",
    "tabs": "prune\ttail\t66%\tof class\t\tembeddings",
    "no line end": CLAUSE,
    "blank lines and semicolons": f"\n\n;;\n {CLAUSE} ;\n",
    "a phrase on its own line": "prune tail 66%\n   of class embeddings",
    "yaml": "- prune: tail 66%\n  of: class embeddings\n",
    "yaml with a mark": "\ufeff- prune tail 66% of class embeddings\r\n",
    "yaml by its start": "steps:\n- prune tail 66% of class embeddings\n",
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_shapes_of_one_clause(text, tmp_path):
    file = tmp_path / "my.spec"
    file.write_bytes(text.encode())
    assert [str(clause) for clause in parse(file).clauses] == [CLAUSE]
    assert [str(clause) for clause in parse(text).clauses] == [CLAUSE]


@pytest.mark.parametrize("text", ["", "\n", "# nothing", " \t\n# a\n\n", "---\n"])
def test_nothing_is_an_empty_spec(text):
    assert parse(text).clauses == ()


BYTES = {"S011": [b"\x80abc", b"prune\0x", "prüne".encode("latin1")], "S012": [b"# " + b"x" * 2_000_000]}


@pytest.mark.parametrize(("code", "data"), [(code, data) for code, all_of in BYTES.items() for data in all_of])
def test_bytes_that_are_no_spec(code, data):
    with pytest.raises(SpecError) as error:
        source_of_bytes(data, "x")
    assert [fault.code for fault in error.value.diagnostics] == [code]


def test_folder_and_missing_file(tmp_path):
    for path in (tmp_path, tmp_path / "none.surgery"):
        with pytest.raises(SpecError) as error:
            parse(path)
        assert error.value.diagnostics[0].code == "S010"
        assert str(path) in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    file = tmp_path / "secret.surgery"
    file.write_text(CLAUSE)
    file.chmod(0)
    with pytest.raises(SpecError, match="permission denied"):
        parse(file)


def test_a_file_name_is_read_and_a_sentence_is_not(tmp_path, monkeypatch):
    (tmp_path / "my.surgery").write_text(CLAUSE)
    monkeypatch.chdir(tmp_path)
    assert parse("my.surgery").source.name == "my.surgery"
    assert parse("read my.surgery").source.name == "<string>"


def test_very_long_line():
    names = ", ".join(f"n{index}" for index in range(20_000))
    spec = parse(f"prune 1% of heads [{names}]")
    assert len(spec.clauses[0].phrases[0].pieces[1].items) == 20_000


def test_deep_yaml_is_a_fault():
    with pytest.raises(SpecError) as error:
        parse("a: " + "[" * 5000, name="x.yaml")
    assert error.value.diagnostics[0].code == "S110"


def test_many_faults_end():
    with pytest.raises(SpecError) as error:
        parse("prune tail % of x\n" * 200)
    assert len(error.value.diagnostics) == 50

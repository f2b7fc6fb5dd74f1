"""`surgery explain`, `schema` and `completion`."""

import json
import shutil
import subprocess

import pytest

from surgery.cli import COMMANDS, main


def told(capsys, *argv) -> str:
    assert main(list(argv)) == 0
    return capsys.readouterr().out


def test_explain(capsys):
    operations = told(capsys, "explain")
    assert "\nmodel " in f"\n{operations}" and "\nrequire " in operations
    assert told(capsys, "explain", "S114").startswith("# a word has no meaning here\n")
    assert told(capsys, "explain", "s114") == told(capsys, "explain", "S114")
    assert "usage    data REFERENCE [samples=N]" in told(capsys, "explain", "data")
    assert told(capsys, "explain", "steps").startswith("steps of data: ")
    assert "S101  a clause is not well-formed\n" in told(capsys, "explain", "--codes")
    document = json.loads(told(capsys, "explain", "S114", "--json"))
    assert (document["format"], document["kind"]) == ("surgery.explain/1", "code")


def test_every_operation_has_a_page(capsys):
    for line in told(capsys, "explain").splitlines():
        page = told(capsys, "explain", line.split()[0])
        assert f"usage    {line.split()[0]}" in page and "before " in page and "refuses " in page


def test_schema(capsys):
    assert json.loads(told(capsys, "schema"))["title"] == "surgery spec"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command(shell, capsys):
    script = told(capsys, "completion", shell)
    assert all(name in script for name in COMMANDS)
    assert "--check" in script or "-l check" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True, timeout=30)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize(
    ("words", "replies"),
    [
        (("che",), {"check"}),
        (("fmt", "--di"), {"--diff"}),
        (("explain", "requ"), {"require"}),
        (("completion", "z"), {"zsh"}),
    ],
)
def test_bash_completes(words, replies, capsys):
    script = told(capsys, "completion", "bash")
    line = " ".join(["surgery", *words])
    script += f"COMP_WORDS=({line}); COMP_CWORD={len(words)}; _surgery; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert set(done.stdout.split()) == replies

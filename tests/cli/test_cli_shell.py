"""The shell around the commands: exit codes, streams, misspellings, bugs, interruptions."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from surgery import cli
from surgery.cli import COMMANDS, main
from surgery.diagnostics import StalePlanError, SurgeryError, UnprovenError

FORBIDDEN = ("torch", "numpy", "matplotlib", "rich", "transformers")


def test_alone_prints_examples_then_commands(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("surgery ") for line in lines[:3])
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], ["--color", "never", "--help"]])
def test_help(argv, capsys):
    assert main(argv) == 0
    assert "commands" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"surgery {cli.import_module('surgery').__version__}\n"


@pytest.mark.parametrize("name", ["check", "fmt", "explain", "schema", "completion"])
def test_help_of_a_command_begins_with_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: surgery {name}")
    assert text.index("surgery", 10) < text.index("options")
    assert "--json" in text and "--quiet" in text and "--color" in text


USAGE = {
    ("plna", "x"): "did you mean `plan`?",
    ("chekc",): "did you mean `check`?",
    ("--jsn",): "did you mean `--json`?",
    ("check", "--jsno", "x"): "did you mean `--json`?",
    ("check", "--js", "x"): "did you mean `--json`?",
    ("check",): "`surgery check --help` shows what it takes",
    ("fmt", "--to", "yml", "x"): "did you mean `yaml`?",
    ("completion", "bsh"): "did you mean `bash`?",
    ("check", "x", "--color", "alwyas"): "did you mean `always`?",
    ("schema", "extra"): "`surgery schema --help` shows what it takes",
    ("explain", "prun"): "did you mean `prune`?",
}


@pytest.mark.parametrize(("argv", "help"), USAGE.items(), ids=" ".join)
def test_usage_faults(argv, help, capsys):
    assert main(list(argv)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[S002]: ")
    assert f"= help: {help}\n" in captured.err


def test_usage_fault_as_json(capsys):
    assert main(["--json", "plna"]) == 2
    assert json.loads(capsys.readouterr().err)["diagnostics"][0]["code"] == "S002"


def stub(monkeypatch, run):
    module = SimpleNamespace(EXAMPLE="surgery check x", add_arguments=lambda parser: None, run=run)
    monkeypatch.setattr(cli, "load", lambda name: module)


def raising(error):
    def run(args):
        raise error

    return run


ERRORS = [
    (SurgeryError("it went wrong", code="S010"), 1, "error[S010]: it went wrong"),
    (UnprovenError("not proven", code="S601"), 3, "error[S601]: not proven"),
    (StalePlanError("stale", code="S401"), 4, "error[S401]: stale"),
    (OSError(28, "No space left on device", "build/x"), 1, "error[S014]: no space left on device: `build/x`"),
    (PermissionError(13, "Permission denied", "/etc/x"), 1, "error[S014]: permission denied: `/etc/x`"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (ZeroDivisionError("division by zero"), 70, "surgery has a bug: ZeroDivisionError: division by zero"),
]


@pytest.mark.parametrize(("error", "status", "message"), ERRORS, ids=lambda value: type(value).__name__)
def test_what_a_command_raises(error, status, message, monkeypatch, capsys):
    monkeypatch.delenv("SURGERY_DEBUG", raising=False)
    stub(monkeypatch, raising(error))
    assert main(["check"]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(message)
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SurgeryError("y")])
def test_debug_shows_the_traceback(error, monkeypatch, capsys):
    monkeypatch.setenv("SURGERY_DEBUG", "1")
    stub(monkeypatch, raising(error))
    main(["check"])
    assert "Traceback" in capsys.readouterr().err


def test_common_options_go_before_or_after(monkeypatch):
    seen = []
    stub(monkeypatch, lambda args: seen.append((args.json, args.color, args.quiet)) or 0)
    assert main(["--json", "--color", "never", "-q", "check"]) == 0
    assert main(["check", "--json", "--color=never", "--quiet"]) == 0
    assert seen == [(True, "never", True)] * 2


def test_a_command_that_is_not_there(monkeypatch, capsys):
    monkeypatch.setitem(COMMANDS, "plan", COMMANDS["plan"]._replace(module="surgery.cli.no_such_module"))
    assert main(["plan", "x"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error[S003]: the command `plan` cannot be loaded") and "= help:" in err


def run(*argv, **more):
    return subprocess.run([sys.executable, *argv], check=False, capture_output=True, text=True, timeout=60, **more)


def test_module_runs():
    done = run("-m", "surgery", "explain", "nothing-such")
    assert (done.returncode, done.stdout) == (2, "")


def test_closed_pipe_is_quiet():
    script = f"{sys.executable} -m surgery explain --codes | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "0"


@pytest.mark.parametrize("argv", [["--help"], ["check", "SPEC"], ["fmt", "--check", "SPEC"], ["explain", "prune"]])
def test_light_commands_import_nothing_heavy_and_start_fast(argv, tmp_path):
    spec = tmp_path / "my.surgery"
    spec.write_text("prune tail 66% of class embeddings\n")
    code = (
        "import sys, surgery.cli\n"
        f"status = surgery.cli.main({[str(spec) if word == 'SPEC' else word for word in argv]!r})\n"
        f"print(status, [name for name in {FORBIDDEN!r} if name in sys.modules], file=sys.stderr)\n"
    )
    start = time.perf_counter()
    done = run("-c", code)
    took = time.perf_counter() - start
    print(f"surgery {argv[0]}: {1000 * took:.0f} ms with the interpreter's start")
    assert done.stderr.splitlines()[-1] == "0 []"
    assert took < 5, "200 ms on a quiet machine; the bound only catches a heavy import on a busy one"


def test_importing_surgery_is_light():
    done = run(
        "-c", f"import sys, surgery; print([name for name in {FORBIDDEN!r} if name in sys.modules], dir(surgery))"
    )
    assert done.stdout.startswith("[] ['SurgeryError', '__version__', 'analyze',")


def test_names_of_the_package():
    code = (
        "import surgery, surgery.check, surgery.check.program\n"
        "assert callable(surgery.check) and callable(surgery.parse) and callable(surgery.format)\n"
        "assert surgery.operation.__name__ == 'operation' and issubclass(surgery.SurgeryError, Exception)\n"
        "spec = surgery.parse('analyze')\n"
        "assert surgery.format(spec) == 'analyze\\n' and surgery.check(spec).operations\n"
        "try: surgery.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = run("-c", code)
    assert done.stdout == "module `surgery` has no attribute `nothing`\n", done.stderr


def test_a_terminal_without_our_letters():
    done = run("-m", "surgery", "check", "-", input="prune ü 5% of x", env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert "does not understand `\\xfc`" in done.stderr

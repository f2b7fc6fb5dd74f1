"""The command line. Results go to stdout, messages to stderr; a command's module loads when it is called."""

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from surgery.cli.terminal import use_color
from surgery.diagnostics import SurgeryError, did_you_mean, render
from surgery.diagnostics.errors import BUG, DONE, FAULTS, INTERRUPTED, USAGE


class Command(NamedTuple):
    """A command: its name, what it does in a few words, the module that does it."""

    name: str
    summary: str
    module: str


_COMMANDS = (
    ("sites", "list what a model is made of, as selectors name it"),
    ("plan", "show what a spec would do and save, without weights"),
    ("apply", "do it, prove it, save the result"),
    ("check", "read a spec and say what it means"),
    ("fmt", "write a spec in its canonical form"),
    ("show", "print a model's graph and who touched it"),
    ("diff", "compare two models or bundles"),
    ("explain", "the page of an error code, an operation or a setting"),
    ("schema", "print the JSON Schema of YAML specs"),
    ("zoo", "list, sample and train the models that ship with surgery"),
    ("doctor", "check the installation"),
    ("completion", "print completions for bash, zsh or fish"),
)
COMMANDS = {name: Command(name, summary, f"surgery.cli.{name}") for name, summary in _COMMANDS}
EXAMPLES = """\
surgery sites zoo:digits-dit                  what there is to cut
surgery plan specs/quickstart.surgery         what a spec would cut
surgery apply specs/quickstart.surgery        cut it, prove it, save it
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the return value is the exit code."""
    # Threads that spin while they wait make a shared machine five times slower; OpenMP reads this when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if argv is None else argv)
    gc.set_threshold(
        20_000, 20, 20
    )  # a young process makes objects, not garbage: collecting slows its start by a tenth
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to stop
    try:
        status = _run(arguments)
        sys.stdout.flush()
        return status
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else DONE
    except SurgeryError as error:
        return _report(error, arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except KeyboardInterrupt as pressed:
        print(str(pressed) or "interrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        return _report(_refused(error), arguments)
    except Exception as error:  # noqa: BLE001 - the last door: a bug is told in a paragraph, not in a traceback
        return _bug(error)


def _run(arguments: list[str]) -> int:
    first = next((index for index, word in enumerate(arguments) if not _is_global(arguments, index)), None)
    if first is None or arguments[first] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return DONE
    name = arguments.pop(first)
    if name in ("-V", "--version"):
        from surgery import __version__

        print(f"surgery {__version__}")
        return DONE
    if name not in COMMANDS:
        raise _unknown(name)
    from surgery.cli.parser import parser_of

    module = load(name)
    return module.run(parser_of(COMMANDS[name], module).parse_args(arguments))


def load(name: str) -> ModuleType:
    """The module of a command. Raises SurgeryError (S003) where it, or what it needs, is not installed."""
    try:
        return import_module(COMMANDS[name].module)
    except ModuleNotFoundError as error:
        raise SurgeryError(
            f"the command `{name}` cannot be loaded: {error}",
            code="S003",
            help="install the package again: `pip install --upgrade model-surgery`",
        ) from error


def _is_global(arguments: list[str], index: int) -> bool:
    """Whether an argument before the command is one of the options that all commands share."""
    word = arguments[index]
    after_color = index > 0 and arguments[index - 1] == "--color"
    return word in ("--json", "--quiet", "-q", "--color") or word.startswith("--color=") or after_color


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {command.name:<{width}}{command.summary}" for command in COMMANDS.values()]
    return "\n".join(
        [
            EXAMPLES,
            "commands",
            *lines,
            "",
            "`surgery COMMAND --help` tells more. Every command takes --json, --color and --quiet.",
            "exit codes: 0 done, 1 faults in the spec or plan, 2 usage, 3 not proven, 4 stale plan, 70 a bug, 130 interrupted",
            "",
        ]
    )


def _unknown(name: str) -> SurgeryError:
    what = "option" if name.startswith("-") else "command"
    known = ["--help", "--version", "--json", "--color", "--quiet"] if what == "option" else COMMANDS
    help = did_you_mean(name, known) or "`surgery` lists the commands"
    error = SurgeryError(f"unknown {what} `{name}`", code="S002", help=help)
    error.exit_code = USAGE
    return error


def _report(error: SurgeryError, arguments: list[str]) -> int:
    """Print a person's fault to stderr, as JSON where that was asked for."""
    style = "json" if "--json" in arguments else "full"
    color = style == "full" and use_color(_chosen_color(arguments), sys.stderr)
    _debug(error)
    sys.stdout.flush()
    print(render(error.diagnostics, style, color), end="", file=sys.stderr)
    return error.exit_code


def _chosen_color(arguments: list[str]) -> str:
    for index, word in enumerate(arguments):
        if word.startswith("--color="):
            return word.partition("=")[2]
        if word == "--color" and index + 1 < len(arguments):
            return arguments[index + 1]
    return "auto"


def _refused(error: OSError) -> SurgeryError:
    where = f": `{error.filename}`" if error.filename else ""
    reason = (error.strerror or str(error)).lower()
    refused = SurgeryError(
        f"{reason}{where}", code="S014", help="mend this and run again; nothing half-written was kept"
    )
    refused.exit_code = FAULTS
    return refused


def _bug(error: Exception) -> int:
    _debug(error)
    told = str(error).partition("\n")[0]
    print(
        f"surgery has a bug: {type(error).__name__}{': ' + told if told else ''}\n"
        "This is not your spec's fault. Nothing half-written was kept. Set SURGERY_DEBUG=1 and run again to see where\n"
        "it happened, and report that with the spec and the output of `surgery doctor`.",
        file=sys.stderr,
    )
    return BUG


def _debug(error: BaseException) -> None:
    if os.environ.get("SURGERY_DEBUG") == "1":
        import traceback

        traceback.print_exception(error, file=sys.stderr)

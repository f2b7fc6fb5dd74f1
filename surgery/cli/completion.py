"""`surgery completion`: completions for a shell, made from the commands, their options and the operations."""

import argparse
from collections.abc import Callable

from surgery.cli.terminal import print_json
from surgery.diagnostics import SurgeryError
from surgery.diagnostics.errors import DONE

EXAMPLE = """
eval "$(surgery completion bash)"                                   bash, in ~/.bashrc
surgery completion zsh > ~/.zfunc/_surgery                          zsh, a folder of $fpath
surgery completion fish > ~/.config/fish/completions/surgery.fish   fish
"""
FILES = ("plan", "apply", "check", "fmt", "show", "diff", "sites")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=tuple(SHELLS), help="which shell")


def run(args: argparse.Namespace) -> int:
    script = SHELLS[args.shell](_words())
    if args.json:
        print_json({"format": "surgery.completion/1", "shell": args.shell, "script": script})
    else:
        print(script, end="")
    return DONE


def _words() -> dict[str, list[str]]:
    """For every command the options and fixed words it takes; a command that cannot be loaded has none."""
    from surgery.cli import COMMANDS, load
    from surgery.cli.parser import parser_of
    from surgery.diagnostics.catalogue import codes
    from surgery.operations import verbs

    words: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        try:
            actions = parser_of(command, load(name))._actions
        except SurgeryError:
            actions = []
        options = [option for action in actions for option in action.option_strings]
        positional = [str(c) for action in actions if not action.option_strings for c in (action.choices or ())]
        words[name] = sorted({*options, *positional})
    words["explain"] += [*verbs(), *codes()]
    return words


def _bash(words: dict[str, list[str]]) -> str:
    cases = "".join(f'        {name}) words="{" ".join(known)}" ;;\n' for name, known in words.items())
    return f"""\
_surgery() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words
    case "${{COMP_WORDS[1]}}" in
{cases}        *) words="{" ".join(words)}" ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(words)}"
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _surgery surgery
"""


def _zsh(words: dict[str, list[str]]) -> str:
    from surgery.cli import COMMANDS

    cases = "".join(f"        {name}) compadd -- {' '.join(known)}; _files ;;\n" for name, known in words.items())
    described = "".join(f"        '{name}:{COMMANDS[name].summary.replace(chr(39), '’')}'\n" for name in words)
    return f"""\
#compdef surgery
_surgery() {{
    local -a commands
    commands=(
{described}    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    case "$words[2]" in
{cases}    esac
}}
if [ "$funcstack[1]" = "_surgery" ]; then
    _surgery "$@"
else
    compdef _surgery surgery
fi
"""


def _fish(words: dict[str, list[str]]) -> str:
    from surgery.cli import COMMANDS

    lines = []
    for name, known in words.items():
        summary = COMMANDS[name].summary.replace("'", "’")
        lines.append(f"complete -c surgery -n __fish_use_subcommand -f -a {name} -d '{summary}'")
        files = "" if name in FILES else " -f"
        inside = f"-n '__fish_seen_subcommand_from {name}'"
        lines += [f"complete -c surgery {inside} -l {word[2:]}" for word in known if word.startswith("--")]
        values = " ".join(word for word in known if not word.startswith("-"))
        if values or files:
            lines.append(f"complete -c surgery {inside}{files}" + (f" -a '{values}'" if values else ""))
    return "\n".join(lines) + "\n"


SHELLS: dict[str, Callable[[dict[str, list[str]]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}

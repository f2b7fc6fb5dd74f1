"""`surgery show`: a model or bundle as code, as a tree, or for Graphviz."""

import sys
from argparse import ArgumentParser, Namespace

from surgery.cli.terminal import console, print_json

EXAMPLE = "surgery show build/quickstart --touched"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="zoo:NAME, a bundle's folder, diffusers:PATH or module:factory")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--code", action="store_true", help="as code, a line per operation (the default)")
    form.add_argument("--tree", action="store_true", help="as a tree of modules with tensors and clauses")
    form.add_argument("--dot", action="store_true", help="for Graphviz: surgery show MODEL --dot | dot -Tsvg")
    parser.add_argument("--touched", action="store_true", help="only what a clause touched")
    parser.add_argument("--full", action="store_true", help="repeated blocks too, instead of `same as`")
    parser.add_argument("--site", metavar="NAME", help='only a module, such as blocks.3 or "blocks.*.mlp"')


def run(args: Namespace) -> int:
    from surgery import inspection

    graph_module = inspection.open_graph(args.model)
    choice = {"touched": args.touched, "site": args.site}
    if args.json:
        print_json(inspection.document(graph_module, args.model, **choice))
    elif args.dot:
        sys.stdout.write(inspection.dot(graph_module, full=args.full, **choice))
    elif args.tree:
        console(args, sys.stdout).print(inspection.tree(graph_module, full=args.full, **choice), soft_wrap=True)
    else:
        _print_code(inspection.code(graph_module, full=args.full, **choice), args)
    return 0


def _print_code(text: str, args: Namespace) -> None:
    """Coloured as Python where colours are wanted; the text itself is the same."""
    terminal = console(args, sys.stdout)
    if not terminal.color_system or terminal.no_color:
        sys.stdout.write(text)
        return
    from rich.syntax import Syntax

    syntax = Syntax(text, "python", theme="ansi_dark", background_color="default")
    terminal.print(syntax.highlight(text), soft_wrap=True, end="")

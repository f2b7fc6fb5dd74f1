"""`surgery explain`: the page of an error code, an operation, or a setting."""

import argparse

from surgery.cli.terminal import print_json
from surgery.diagnostics import SurgeryError, did_you_mean
from surgery.diagnostics.catalogue import codes, page, title
from surgery.diagnostics.errors import DONE, USAGE
from surgery.operations import explain, fields_of, usage, verbs

EXAMPLE = """
surgery explain                 all operations
surgery explain prune           how an operation is written and what it does
surgery explain S104            what an error means and how to mend it
surgery explain scope           which operations have a setting, and what it holds
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("topic", nargs="?", help="an error code, an operation or a setting; all operations without it")
    parser.add_argument("--codes", action="store_true", help="list all error codes")


def run(args: argparse.Namespace) -> int:
    kind, text = _overview(args.codes) if args.topic is None else _topic(args.topic)
    if args.json:
        print_json({"format": "surgery.explain/1", "topic": args.topic, "kind": kind, "text": text})
    else:
        print(text, end="")
    return DONE


def _overview(with_codes: bool) -> tuple[str, str]:
    if with_codes:
        return "codes", "".join(f"{code}  {title(code)}\n" for code in codes())
    known = verbs()
    width = max(map(len, known))
    return "operations", "".join(f"{verb:<{width}}  {_first_line(kind)}\n" for verb, kind in known.items())


def _topic(topic: str) -> tuple[str, str]:
    if topic.upper() in codes():
        return "code", page(topic.upper())
    known = verbs()
    if topic in known:
        return "operation", explain(known[topic])
    holders = {verb: one for verb, kind in known.items() for one in fields_of(kind) if topic in one.names}
    if holders:
        return "field", "".join(_field(known[verb], one) for verb, one in holders.items())
    names = [name for kind in known.values() for one in fields_of(kind) for name in one.names]
    error = SurgeryError(
        f"nothing is called `{topic}`",
        code="S002",
        help=did_you_mean(topic, [*known, *names, *codes()]) or "`surgery explain` lists the operations",
    )
    error.exit_code = USAGE
    raise error


def _field(kind: type, one) -> str:
    told = [one.syntax.doc or (one.syntax.kind.name if one.syntax.kind else "a comparison")]
    if not one.required and one.default is not None:
        told.append(f"default {one.default}")
    return f"{one.names[0]} of {kind.verb}: {'; '.join(told)}\n  {usage(kind)}\n"


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]

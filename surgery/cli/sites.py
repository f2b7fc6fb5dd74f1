"""`surgery sites MODEL`: what a model is made of, as selectors name it."""

import sys
from argparse import ArgumentParser, Namespace
from typing import Any

EXAMPLE = "surgery sites zoo:digits-dit"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="zoo:NAME, hf:PATH, diffusers:PATH, a bundle's folder or module:factory"
    )
    parser.add_argument("--kind", metavar="KIND", help="only attention, mlp, embedding, conditioning or block")
    parser.add_argument("--full", action="store_true", help="every layer, instead of `layers 0..7 alike`")


def run(args: Namespace) -> int:
    from surgery.anatomy import inspect
    from surgery.cli.terminal import print_json
    from surgery.session.prepare import open_reference

    opened = open_reference(args.model, weights=False)
    anatomy = inspect(opened.module, opened.example_inputs)
    chosen = tuple(site for site in anatomy.sites if args.kind in (None, site.kind))
    if not chosen:
        raise _no_kind(args.kind, anatomy)
    if args.json:
        document = anatomy.document() | {"model": args.model}
        print_json(document | {"sites": [site.document() for site in chosen]})
        return 0
    _print(args, chosen)
    for note in anatomy.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _print(args: Namespace, sites: tuple) -> None:
    from rich.table import Table

    from surgery.cli.terminal import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("kind", "layer", "path", "what it is"):
        table.add_column(title, overflow="fold")
    for kind, layer, path, told in _rows(sites, full=args.full):
        table.add_row(kind, layer, path, told)
    console(args, sys.stdout).print(table)


def _rows(sites: tuple, *, full: bool) -> list[tuple[str, str, str, str]]:
    """A row per site; runs of layers that are alike are one row."""
    rows: list[list[Any]] = []
    groups: dict[tuple, list] = {}
    for site in sites:
        if site.kind == "block":
            continue
        key = (site.kind, site.describe(), id(site) if full or site.layer is None else site.kind)
        groups.setdefault(key, []).append(site)
    blocks = [site for site in sites if site.kind == "block"]
    if blocks:
        rows.append(["block", _span([b.layer for b in blocks]), _paths(blocks), f"{len(blocks)} layers"])
    for (kind, told, _), members in groups.items():
        rows.append([kind, _span([site.layer for site in members]), _paths(members), told])
    return [tuple(row) for row in rows]


def _span(layers: list[int | None]) -> str:
    known = sorted({layer for layer in layers if layer is not None})
    if not known:
        return ""
    if known == list(range(known[0], known[-1] + 1)) and len(known) > 1:
        return f"{known[0]}..{known[-1]}"
    return ", ".join(map(str, known))


def _paths(sites: list) -> str:
    """One path with `*` where the members differ."""
    split = [site.path.split(".") for site in sites]
    if len({len(parts) for parts in split}) > 1:
        return f"{sites[0].path} …"
    merged = [column[0] if len(set(column)) == 1 else "*" for column in zip(*split, strict=True)]
    return ".".join(merged) or "(whole model)"


def _no_kind(kind: str | None, anatomy: Any) -> Exception:
    from surgery.diagnostics import SurgeryError, did_you_mean

    kinds = list(dict.fromkeys(site.kind for site in anatomy.sites))
    if kind is None or not kinds:
        return SurgeryError(
            "nothing in this model has a name yet: no attention, mlp, embedding or conditional vector was found",
            code="S303",
            help="`surgery show MODEL` prints its graph",
        )
    return SurgeryError(f"this model has no site of kind `{kind}`", code="S303", help=did_you_mean(kind, kinds))

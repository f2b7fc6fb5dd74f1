"""Which lines of a listing were asked for."""

from fnmatch import fnmatchcase

from torch.fx import Node

from surgery.diagnostics import SurgeryError
from surgery.diagnostics.nearest import nearest
from surgery.inspection.listing import Listing, Statement
from surgery.inspection.owners import parents


def select(listing: Listing, *, touched: bool = False, site: str | None = None) -> list[Statement]:
    """The lines that were touched, or lie in a site, or both; all of them by default.

    A site is a module's dotted path, with `*` for any part of it. Raises SurgeryError S361 when there is none.
    """
    inside = _inside(listing, site) if site else None
    return [
        statement
        for statement in listing.statements
        if (statement.marks or not touched) and (inside is None or statement.node in inside)
    ]


def _inside(listing: Listing, site: str) -> set[Node]:
    """The nodes under a module path or pattern."""
    found = {
        statement.node
        for statement in listing.statements
        if any(fnmatchcase(up, site) for up in parents(listing.owner[statement.node]))
    }
    if found:
        return found
    known = {
        up: None for statement in listing.statements for up in reversed(list(parents(listing.owner[statement.node])))
    }
    near = nearest(site, known)
    raise SurgeryError(
        f"no module `{site}` in this graph",
        code="S361",
        notes=[f"outermost modules: {', '.join(path for path in known if '.' not in path)}"],
        help=f"did you mean `{near}`?" if near else "`surgery show MODEL --tree` lists them",
    )

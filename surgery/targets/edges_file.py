"""A file of attention patterns: `surgery.edges/1`, a safetensors file that circuits can be handed over in.

Per site, by its name: int32 [E, 3], each (head, query, key), or bool [heads, length, length], True where kept. In the
header's metadata, text: `format` "surgery.edges/1", `length` (of queries and keys), `heads` (JSON: site to number) and
`fingerprint` of the model's structure, as plans and reports have it.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from surgery.anatomy.site import Anatomy
from surgery.atomic import write_bytes
from surgery.diagnostics import SurgeryError
from surgery.diagnostics.nearest import did_you_mean
from surgery.plan.fingerprint import fingerprint

FORMAT = "surgery.edges/1"


@dataclass(frozen=True, eq=False)
class EdgesFile:
    """`edges` by site, int32 [E, 3] of (head, query, key), each once, in order."""

    path: str
    edges: Mapping[str, Tensor]
    heads: Mapping[str, int]
    length: int
    fingerprint: str


def write_edges(
    path: str | os.PathLike[str], edges: Mapping[str, Tensor], anatomy: Anatomy, *, length: int | None = None
) -> None:
    """Write patterns for `sparsify attention to edges "…"`.

    edges    by site name, as `surgery sites` lists them: int [E, 3] of (head, query, key), or bool [heads, S, S]
    anatomy  of the model they are for: `surgery.inspect(model, example_inputs)`
    length   S, where no mask says it

    Raises SurgeryError (S333) for what would be refused when it is read.
    """
    sites = {site.name: site for site in anatomy.of_kind("attention")}
    lengths = {each.shape[-1] for each in edges.values() if each.dtype == torch.bool} | ({length} if length else set())
    if len(lengths) != 1:
        raise _wrong(str(path), f"its patterns are of lengths {sorted(lengths)}", "give one `length`, that of all masks")
    unknown = next((name for name in edges if name not in sites), None)
    if unknown is not None:
        raise _wrong(str(path), f"the model has no attention `{unknown}`", did_you_mean(unknown, sites))
    metadata = {
        "format": FORMAT,
        "length": str(*lengths),
        "heads": json.dumps({name: sites[name].heads for name in edges}),
        "fingerprint": fingerprint(anatomy.graph_module),
    }
    made = EdgesFile(
        str(path),
        {name: listed(each) for name, each in edges.items()},
        {name: sites[name].heads for name in edges},
        *lengths,
        metadata["fingerprint"],
    )
    for name, each in made.edges.items():
        check_edges(made, name, each, causal=sites[name].causal)
    write_bytes(Path(path), safetensors.torch.save(dict(made.edges), metadata))


def read_edges(path: Path) -> EdgesFile:
    """A file's patterns. Raises SurgeryError: S201 missing, S333 not of this format."""
    if not path.is_file():
        raise SurgeryError(f"there is no file `{path}`", code="S201", help="a path is relative to the spec's folder")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if told.get("format") != FORMAT:
            raise _wrong(str(path), f"its format is `{told.get('format', 'none')}`, not `{FORMAT}`")
        heads, length = json.loads(told["heads"]), int(told["length"])
        return EdgesFile(str(path), {n: listed(t) for n, t in tensors.items()}, heads, length, told["fingerprint"])
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        raise _wrong(str(path), f"it cannot be read: {str(error).splitlines()[0]}") from error


def listed(edges: Tensor) -> Tensor:
    """int32 [E, 3] of a list or a mask. Raises ValueError for anything else."""
    if edges.dtype == torch.bool and edges.dim() == 3:
        return edges.nonzero().to(torch.int32).contiguous()
    if edges.dtype.is_floating_point or edges.dtype == torch.bool or edges.dim() != 2 or edges.shape[1] != 3:
        raise ValueError(f"edges are int [E, 3] or bool [heads, S, S], not {edges.dtype} {list(edges.shape)}")
    return edges.unique(dim=0).to(torch.int32).contiguous()


def check_edges(file: EdgesFile, name: str, edges: Tensor, *, causal: bool) -> None:
    """Raise SurgeryError (S333) for an edge out of range or ahead of its query, or a query that has none."""
    heads, length = file.heads.get(name, 0), file.length
    limits = torch.tensor([heads, length, length])
    out = ((edges < 0) | (edges >= limits)).any(1)
    if bool(out.any()):
        place = tuple(edges[out][0].tolist())
        raise _wrong(file.path, f"edge {place} of `{name}` is out of range: it has {heads} heads, and {length} positions")
    ahead = edges[:, 2] > edges[:, 1]
    if causal and bool(ahead.any()):
        place = tuple(edges[ahead][0].tolist())
        what = f"edge {place} of `{name}` looks ahead: key {place[2]} is behind query {place[1]}, and the site is causal"
        raise _wrong(file.path, what, "leave it out")
    served = torch.zeros(heads, length, dtype=torch.bool)
    served[edges[:, 0].long(), edges[:, 1].long()] = True
    if not bool(served.all()):
        head, query = (~served).nonzero()[0].tolist()
        what = f"query {query} of head {head} of `{name}` is left without an edge"
        raise _wrong(file.path, what, f"keep one for it, such as ({head}, {query}, {query}), its own")


def refuse_other(file: EdgesFile, anatomy: Anatomy, names: tuple[str, ...]) -> None:
    """Raise SurgeryError (S333) for a file of another model, or one that lacks a site or names one there is not."""
    sites = {site.name: site for site in anatomy.of_kind("attention")}
    unknown = next((name for name in file.edges if name not in sites), None)
    if unknown is not None:
        raise _wrong(file.path, f"it names `{unknown}`, which the model has not", did_you_mean(unknown, sites))
    missing = next((name for name in names if name not in file.edges), None)
    if missing is not None:
        help = f"add its edges, or name fewer sites, as in `attention except module \"{missing}\"`"
        raise _wrong(file.path, f"it has no edges of `{missing}`", did_you_mean(missing, file.edges) or help)
    for name in names:
        if file.heads.get(name) != sites[name].heads:
            told = f"it has {file.heads.get(name)} heads of `{name}`, the model {sites[name].heads}"
            raise _wrong(file.path, told)
    if file.fingerprint != fingerprint(anatomy.graph_module):
        raise _wrong(file.path, "it was made for another model: the fingerprints of the structures differ")


def _wrong(path: str, what: str, help: str = "") -> SurgeryError:
    write = "write it with `surgery.write_edges(path, edges, surgery.inspect(model, example_inputs))`"
    return SurgeryError(f"`{path}` holds no edges for this model: {what}", code="S333", help=help or write)

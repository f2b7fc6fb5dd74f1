"""Save a rewritten graph as a bundle."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.fx import GraphModule

from surgery.bundle.exported import PT2, Inputs, write_pt2
from surgery.bundle.faults import DEVICE, UNWRITABLE
from surgery.bundle.files import (
    GRAPH,
    PAGE,
    REPORT,
    SPEC,
    check_extra,
    json_text,
    write_manifest,
)
from surgery.bundle.folder import written_whole
from surgery.bundle.graph import write_graph
from surgery.bundle.module import LoadedModule
from surgery.bundle.parse import read_graph
from surgery.bundle.tensors import collect, entries
from surgery.bundle.weights import write_tensors
from surgery.diagnostics import BundleError


def save(
    folder: str | os.PathLike[str],
    graph_module: GraphModule,
    *,
    manifest: Mapping[str, Any],
    spec: str | None = None,
    report: Mapping[str, Any] | None = None,
    report_html: str | None = None,
    extra: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    pt2: Inputs | None = None,
) -> Path:
    """Write a bundle, whole or not at all, and return its folder.

    `manifest` says where the model came from; the keys format, versions and files are the bundle's own and are
    written afresh. `extra` are further files by plain name, such as config.json. `pt2` are the inputs of a forward
    pass with which `model.pt2` is exported too. An existing folder is refused, or
    with `overwrite` replaced in one step if it is a bundle. The same module and texts give the same bytes.
    Raises BundleError: S701 folder exists, S702 disk or permission, S707 to S716 what a bundle cannot hold.
    """
    target = Path(os.path.abspath(os.path.realpath(folder)))
    extra = dict(extra or {})
    check_extra(extra)
    tensors = collect(graph_module)
    home = home_of(graph_module)
    table = entries(tensors, home)
    texts = {GRAPH: write_graph(graph_module, table, home), SPEC: spec, PAGE: report_html}
    texts[REPORT] = json_text(report, REPORT) if report is not None else None
    # What is written is read back first: a bundle that cannot be loaded is never written.
    LoadedModule(read_graph(texts[GRAPH].encode(), home).graph, tensors, home)
    try:
        with written_whole(target, overwrite=overwrite) as staging:
            write_tensors(staging, tensors, table)
            for name, text in texts.items():
                if text is not None:
                    (staging / name).write_bytes(text.encode())
            for name, content in extra.items():
                (staging / name).write_bytes(content)
            if pt2 is not None:
                write_pt2(staging / PT2, graph_module, pt2)
            write_manifest(staging, manifest)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(
            f"cannot write the bundle `{target}`: {reason}",
            code=UNWRITABLE,
            help="nothing was left behind: free some space, or choose a folder you may write to",
        ) from error
    return target


def home_of(module: GraphModule) -> torch.device:
    """The one device a module's state is on; where it has none, the device it was loaded onto, or the CPU."""
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    if len(devices) > 1:
        # Scalars that torch.export lifts out of the code stay on the CPU wherever the model is.
        devices -= {torch.device("cpu")}
    if len(devices) > 1:
        raise BundleError(
            f"the model is spread over {', '.join(sorted(map(str, devices)))}",
            code=DEVICE,
            help="move it to one device before saving: `module.to('cpu')`",
        )
    return devices.pop() if devices else getattr(module, "_home", torch.device("cpu"))

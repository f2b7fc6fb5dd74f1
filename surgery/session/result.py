"""What an operation on a model leaves: the module, how it came about, and how to save it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from surgery.anatomy.capture import Inputs
from surgery.language import Spec
from surgery.plan.plan import Plan
from surgery.reload import Stock
from surgery.reload.names import rename
from surgery.session.document import finite
from surgery.session.places import portable, saved_places, with_portable_marks

TIMED = ("latency", "memory", "elapsed_s")


@dataclass(frozen=True, eq=False)
class Result:
    """`graph_module` is the rewritten graph; `module` the same, called like the original model. It shares the tensors
    that were not cut with the original. `report` is the document of format `surgery.report/1`, `files` what else a bundle
    holds, `stock` whether the library the model came from reads it."""

    graph_module: GraphModule
    plan: Plan
    report: dict[str, Any]
    manifest: Mapping[str, Any]
    spec: Spec
    files: Mapping[str, bytes] = field(default_factory=dict)
    stock: Stock | None = None
    example_inputs: Inputs = field(default_factory=dict)

    @property
    def module(self) -> GraphModule:
        return self.graph_module

    def save(
        self, folder: str | os.PathLike[str], *, overwrite: bool = False, timings: bool = True, pt2: bool = False
    ) -> Path:
        """Write the bundle, whole or not at all; returns its folder. `surgery.load(folder)` reads it again.

        With `pt2` it also holds `model.pt2`, which `torch.export.load` reads without surgery. Places in it are places in its own `spec.surgery`. Without `timings` its report leaves out what the clock
        measured, and the same model, spec and seeds give the same bytes. Raises BundleError.
        """
        from surgery.bundle import save
        from surgery.report.html import html

        places = saved_places(self.spec)
        left_out = () if timings else TIMED
        kept = {key: value for key, value in self.report.items() if key not in left_out}
        report = finite(portable(kept | {"bundle": None}, places))
        path = save(
            folder,
            rename(with_portable_marks(self.graph_module, places), self.stock.gaps if self.stock else ()),
            manifest=finite(portable(self.manifest, places)),
            spec=self.plan.spec,
            report=report,
            report_html=html(report),
            extra=dict(self.files),
            overwrite=overwrite,
            pt2=self.example_inputs if pt2 else None,
        )
        self.report["bundle"] = str(folder)
        return path

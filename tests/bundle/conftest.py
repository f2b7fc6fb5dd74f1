"""Bundles that several tests read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bundle_cases import Transformer, capture, contents, inputs
from torch.fx import GraphModule

from surgery.bundle import save


@pytest.fixture(scope="session")
def transformer() -> GraphModule:
    torch.manual_seed(0)
    return capture(Transformer(), **inputs())


@pytest.fixture(scope="session")
def saved(transformer, tmp_path_factory) -> Path:
    """A bundle nobody changes."""

    return save(tmp_path_factory.mktemp("saved") / "bundle", transformer, manifest={"model": "hand-written"})


@pytest.fixture
def edited(saved, tmp_path) -> Callable[..., Path]:
    """A copy of the bundle whose graph.json went through `change(document)` or was replaced by bytes."""

    def make(change: Callable[[dict], object] | bytes) -> Path:
        folder = tmp_path / "edited"
        folder.mkdir(exist_ok=True)
        for name, content in contents(saved).items():
            (folder / name).write_bytes(content)
        if isinstance(change, bytes):
            (folder / "graph.json").write_bytes(change)
            return folder
        document = json.loads((saved / "graph.json").read_text())
        change(document)
        (folder / "graph.json").write_text(json.dumps(document))
        return folder

    return make

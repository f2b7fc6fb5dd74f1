"""One file per scheme of a reference: `zoo.py` opens `zoo:…` with `load(location, *, weights) -> LoadedModel`."""

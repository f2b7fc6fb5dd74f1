"""Bundles: a rewritten model in a folder, self-contained and safe to load. See `save` and `load`."""

from surgery.bundle.files import read_manifest
from surgery.bundle.load import load
from surgery.bundle.module import LoadedModule
from surgery.bundle.output import Output
from surgery.bundle.save import save
from surgery.bundle.value import Value, value_of

__all__ = ["LoadedModule", "Output", "Value", "load", "read_manifest", "save", "value_of"]

"""`model zoo:digits-dit`: which network the spec is about."""

from surgery.language import Reference
from surgery.operations.base import operation
from surgery.operations.fields import subject


@operation
class Model:
    """Name the model to operate on.

    before   nothing               after   the model, opened
    refuses  a `module.path:factory` that only a spec names: it runs code
    """

    phase = None
    reference: Reference = subject(Reference, doc="`zoo:NAME`, `diffusers:PATH`, `hf:PATH` or a bundle's folder")

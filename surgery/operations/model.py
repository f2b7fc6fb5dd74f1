"""`model zoo:digits-dit`: which network the spec is about."""

from surgery.language import Reference
from surgery.operations.base import operation
from surgery.operations.fields import setting, subject


@operation
class Model:
    """Name the model to operate on.

    before   nothing               after   the model, opened
    refuses  a `module.path:factory` that only a spec names: it runs code
    """

    phase = None
    reference: Reference = subject(
        Reference, doc="`hf:PATH` or `hf:ORG/NAME`, `diffusers:PATH`, `zoo:NAME` or a bundle's folder"
    )
    dtype: str | None = setting(
        "float32", "bfloat16", "float16", default=None, doc="what weights are turned into; as they are saved without"
    )

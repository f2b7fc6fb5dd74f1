"""The faults a bundle can have; each code has its page in `diagnostics/codes/`."""

from surgery.diagnostics import BundleError

EXISTS = "S701"
UNWRITABLE = "S702"
MISSING = "S703"
CHANGED = "S704"
MALFORMED = "S705"
VERSION = "S706"
OPERATOR = "S707"
ARGUMENTS = "S708"
TENSOR = "S709"
MISMATCH = "S710"
STRUCTURE = "S711"
FILE_NAME = "S712"
UNSTORABLE = "S713"
DEVICE = "S714"
MANIFEST = "S715"
EXPORT = "S716"
LIBRARY = "S717"

WRITE_AGAIN = "the file was edited by hand or written by another program: write the bundle again with `surgery apply`"


def malformed(place: str, message: str, help: str = WRITE_AGAIN) -> BundleError:
    """A file of the bundle is not what its format says. `place` names the file and the part of it."""
    return BundleError(f"{place}: {message}", code=MALFORMED, help=help)

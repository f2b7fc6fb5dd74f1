"""A captured graph and its named sites."""

from surgery.anatomy.capture import capture
from surgery.anatomy.inspect import anatomy_of, inspect
from surgery.anatomy.site import Anatomy, Site

__all__ = ["Anatomy", "Site", "anatomy_of", "capture", "inspect"]

"""A door to the top-level shelf `kernels/`: `surgery.kernels.X` is the file `kernels/X.py` there.

The shelf has no `__init__.py` of its own: Hugging Face ships a package named `kernels`, and a folder of that name with
one would shadow it wherever the working directory is on the import path.
"""

from surgery.layout import shelf

__path__ = [str(shelf("kernels"))]

"""CPU kernels in C++, compiled for this processor on first use, without torch's headers (1 to 12 s each)."""

from surgery.kernels.native.build import NativeUnavailable, available, library

__all__ = ["NativeUnavailable", "available", "library"]

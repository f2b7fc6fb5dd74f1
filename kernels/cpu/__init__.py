"""Fast paths without a GPU: native kernels where a compiler is at hand, PyTorch otherwise."""

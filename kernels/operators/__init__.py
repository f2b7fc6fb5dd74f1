"""The shelf's operators, `torch.ops.surgery.*`, and the functions that call them.

Importing this registers all of them; it loads torch but neither Triton nor CUDA.
"""

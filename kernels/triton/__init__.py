"""GPU kernels: kernel, launcher and what to compile ahead, a file each.

Imported only to launch or to compile: importing these loads Triton.
"""

"""Compile every Triton kernel and shipped config ahead of time, without a GPU, and hold what they use."""

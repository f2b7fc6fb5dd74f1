"""The slow truth of each kernel, in plain PyTorch, any floating dtype."""

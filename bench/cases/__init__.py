"""The cases of the attention benchmark, a file per operator."""

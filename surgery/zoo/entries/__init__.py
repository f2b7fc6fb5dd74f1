"""One file per zoo model: `digits_dit.py` holds the `MODEL` named `digits-dit`. A new file is a new model."""

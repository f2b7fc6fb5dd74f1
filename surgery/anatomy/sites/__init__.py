"""Sites are found by structure, one file per kind; no model names anywhere."""

"""What can be cut, one file per target: how it is planned, chosen, rewritten, and what proves it."""

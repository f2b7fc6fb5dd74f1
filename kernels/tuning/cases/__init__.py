"""How to run each table's kernels for the tuner: a file a table, with `tuning_cases(device)`."""

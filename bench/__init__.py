"""Benchmarks against peers: `python -m bench.NAME [--quick] [--json]`, each ratio from one interleaved run."""

"""Sparse attention against dense and FlexAttention: `python -m bench.attention [--quick] [--json]`.

    block     blocks of keys per block of queries, forward and backward
    edge      single edges, random
    gated     the gate on each score, forward and backward: against the same thing in plain PyTorch
    decode    one new query over chosen blocks of a long cache

Every row's ratio comes from one interleaved run. Building an index is not in `ours_ms`; it is shown beside it.
"""

from collections.abc import Iterator

from bench.cases import block, decode, edge, gated
from bench.harness import Options, Scene, main


def scenes(asked: Options) -> Iterator[Scene]:
    for cases in (edge, block, gated, decode):
        yield from cases.scenes(asked)


if __name__ == "__main__":
    raise SystemExit(main("attention", scenes))

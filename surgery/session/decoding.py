"""How long the next token takes: the latency of a decoder that keeps its keys and values."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from surgery.anatomy.capture import Inputs, with_batch
from surgery.diagnostics import RefusalError
from surgery.generation import Decoder, decoder_of
from surgery.targets.context import Progress
from surgery.verify.timing import latency

WRITING = ("causal-lm", "seq2seq-lm")


def decode_rows(
    uncut: GraphModule, after: GraphModule, inputs: Inputs, batches: tuple[int, ...], progress: Progress
) -> list[dict[str, Any]]:
    """One row per batch size: the step that reads one token behind all others of `inputs`, `length` of them.

    Both graphs are run by the same decoder, so the ratio is the cut's own. Where a graph cannot be run token by token a
    single row says why.
    """
    if not isinstance(inputs, Mapping):
        return []
    try:
        decoders = [decoder_of(graph_module) for graph_module in (uncut, after)]
    except RefusalError as error:
        return [{"mode": "eager", "batch": batches[0], "phase": "decode", "skipped": error.diagnostics[0].message}]
    rows = []
    for batch in batches:
        first, second = (next_token(decoder, with_batch(inputs, size=batch)) for decoder in decoders)
        rows += latency(
            first,
            second,
            lambda _: (),
            batches=(batch,),
            compiled=False,
            progress=lambda text: progress(f"{text}, one token", 0, 0),
        )
    length = inputs[str(decoders[0].parts.tokens.target)].shape[1]
    return [row | {"phase": "decode", "length": length - 1} for row in rows]


def next_token(decoder: Decoder, inputs: Mapping[str, Any]) -> Callable[[], Tensor]:
    """What reads the last token, again and again, behind the others, which are read once."""
    name = str(decoder.parts.tokens.target)
    tokens, before = inputs[name], inputs[name].shape[1] - 1
    given = {other: value for other, value in inputs.items() if other != name and isinstance(value, Tensor)}
    text = decoder.start(given, len(tokens), tokens.shape[1])
    with torch.no_grad():
        text.read(tokens[:, :before])

    def read() -> Tensor:
        text.memory.past = before
        return text.read(tokens[:, before:])

    return read

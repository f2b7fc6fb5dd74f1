"""Text rows as a model's inputs and targets, held-out ones and ones to calibrate on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgery.diagnostics import SurgeryError
from surgery.models.corpus.mask import UNSCORED, masked
from surgery.models.corpus.part import apart, drawn
from surgery.models.corpus.rows import Row, lines, padded, windows
from surgery.models.corpus.tokenizer import tokenizer_of
from surgery.models.loaded import LoadedModel
from surgery.operations.kinds import Share

ROWS, LENGTH = 256, 512
STREAMED = ("causal-lm", "seq2seq-lm")
"""Tasks of models that write; whatever has a decoder is given a stream too."""
Inputs = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class TextRows:
    """Inputs [N, ..] and targets [N, T] of each part, None where the task has none; and how many rows there are."""

    held_out: Inputs
    targets: Tensor | None
    calibration: Inputs | None
    calibration_targets: Tensor | None
    described: str


def text_rows(
    texts: Sequence[str],
    model: LoadedModel,
    path: Path,
    *,
    records: bool,
    samples: int | None,
    seed: int,
    length: int | None,
    calibration: Share | int | None,
) -> TextRows:
    """Rows of the model's kind: windows of `length` tokens for a model that writes, else a padded row per text.

    Texts are parts of one stream, or `records` of their own, each of which ends.

    `samples` distinct rows are drawn with the seed (256, or as many as there are, where it is None) and parted:
    `calibration` of them, half by default, to calibrate on, the others held out.
    Errors: S212 for a model without text inputs or tokenizer, for too little text, for a length beyond its positions.
    """
    _refuse_other_inputs(model)
    tokenizer, task = tokenizer_of(model), model.source.get("task")
    length = _length(model, length)
    whole = streamed(model)
    read = windows if whole else lines
    if records and whole:
        texts = [text + (tokenizer.eos_token or "\n\n") for text in texts]
    rows = read(tokenizer, texts, length, samples or ROWS)
    wanted = samples or min(ROWS, len(rows))
    if len(rows) < wanted or wanted < 2:
        raise _too_short(path, len(rows), wanted, length, whole)
    chosen = [rows[index] for index in drawn(len(rows), wanted, seed)]
    _refuse_other_vocabulary(model, max(map(max, chosen)))
    count = apart(calibration, wanted)
    make = _Maker(model, tokenizer, task, seed)
    held_out, targets = make(chosen[count:])
    calibrating, theirs = make(chosen[:count]) if count else (None, None)
    kind = f"windows of {length} tokens" if whole else f"rows of up to {length} tokens"
    told = f"{wanted - count} {kind} of {path.name}, {count} more to calibrate on"
    return TextRows(held_out, targets, calibrating, theirs, told)


@dataclass(frozen=True)
class _Maker:
    """From rows to inputs and targets."""

    model: LoadedModel
    tokenizer: Any
    task: str | None
    seed: int

    def __call__(self, rows: Sequence[Row]) -> tuple[Inputs, Tensor | None]:
        if "decoder_input_ids" in self.model.example_inputs:
            inputs, targets = self._halves(rows)
            return inputs, targets if self.task == "seq2seq-lm" else None
        tokens, real = padded(rows, self._fill)
        targets = None
        if self.task == "causal-lm":
            targets = torch.cat([tokens[:, 1:], torch.full_like(tokens[:, :1], UNSCORED)], 1)
        if self.task == "masked-lm":
            tokens, targets = masked(tokens, real, self.tokenizer, self.seed)
        return self._named({"input_ids": tokens, "attention_mask": real}), targets

    def _halves(self, rows: Sequence[Row]) -> tuple[Inputs, Tensor]:
        """The first half of a window is read, the second one written."""
        tokens, real = padded(rows, self._fill)
        half = tokens.shape[1] // 2
        first = self.model.source["config"].get("decoder_start_token_id") or self._fill
        written = tokens[:, half:]
        shifted = torch.cat([torch.full_like(written[:, :1], first), written[:, :-1]], 1)
        read = {"input_ids": tokens[:, :half], "attention_mask": real[:, :half], "decoder_input_ids": shifted}
        return self._named(read), written

    @property
    def _fill(self) -> int:
        padding = self.tokenizer.pad_token_id
        return padding if padding is not None else self.tokenizer.eos_token_id or 0

    def _named(self, inputs: Inputs) -> Inputs:
        """In the order, and of the names, that the model takes."""
        return {name: inputs[name] for name in self.model.example_inputs}


def streamed(model: LoadedModel) -> bool:
    """Whether the model is given windows of a stream of text, rather than a row per text."""
    return model.source.get("task") in STREAMED or "decoder_input_ids" in model.example_inputs


def _refuse_other_inputs(model: LoadedModel) -> None:
    known = {"input_ids", "attention_mask", "decoder_input_ids"}
    names = list(model.example_inputs) if isinstance(model.example_inputs, Mapping) else []
    if "input_ids" not in names or set(names) - known:
        raise SurgeryError(
            f"text does not fit {model.reference}: its inputs are {', '.join(names) or 'not named'}",
            code="S212",
            help='write `data noise`, or `data tensors:"file.safetensors"` with the model\'s own inputs',
        )


def _length(model: LoadedModel, asked: int | None) -> int:
    from surgery.models.huggingface.examples import positions

    most = positions(model.source.get("config") or {})
    if asked and most and asked > most:
        raise SurgeryError(
            f"length={asked}: {model.reference} has {most} positions",
            code="S212",
            help=f"write `length={most}` or less",
        )
    return asked or min(LENGTH, most or LENGTH)


def _refuse_other_vocabulary(model: LoadedModel, largest: int) -> None:
    known = model.source["config"].get("vocab_size")
    if isinstance(known, int) and largest >= known:
        raise SurgeryError(
            f"the tokenizer of {model.reference} gives token {largest}, but the model knows {known} tokens",
            code="S212",
            help="it is another model's tokenizer: save the right one beside the weights",
        )


def _too_short(path: Path, there: int, wanted: int, length: int, streamed: bool) -> SurgeryError:
    rows = f"windows of {length} tokens" if streamed else "lines"
    fewer = f"write `samples={there}` or less" + f", or a shorter `length` than {length}" * streamed
    return SurgeryError(
        f"`{path}` gives {there} different {rows}, not {max(wanted, 2)}",
        code="S212",
        notes=("a row that is there twice counts once: it could not be both calibrated on and held out",),
        help=f"{fewer}; or give more text" if there > 1 else "give more text",
    )

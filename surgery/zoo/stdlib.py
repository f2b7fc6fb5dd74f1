"""The source of the running interpreter's standard library: what `code-gpt` learns to write.

Left out are test suites, demonstrations and files that hold tables rather than code. A module is held out by a hash of
its path below the library's folder, so that it is held out under every version of Python.
"""

import json
import sysconfig
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from surgery.diagnostics import SurgeryError

CONTEXT = 512
HELD_OUT_EVERY = 16
TOKENS = 2048
END = "<|endoftext|>"
"""Stands behind every file."""
TOKENIZER = Path(__file__).parent / "weights" / "code-gpt.tokenizer.json"
LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "turtledemo",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
    "pydoc_data",
}
TABLES = "_sysconfigdata"


@dataclass(frozen=True, eq=False)
class Stream:
    """Files one behind the other: tokens [N] int64."""

    tokens: Tensor

    def draw(self, count: int, chance: Generator) -> tuple[Tensor, Tensor]:
        """`count` windows of CONTEXT tokens from anywhere and the tokens that follow, [count, CONTEXT] each.

        Or, as likely, two or four times as many of a half or a quarter of that length, which cost less.
        """
        shorter = 1 << int(torch.randint(3, (), generator=chance))
        length = CONTEXT // shorter
        first = torch.randint(len(self.tokens) - length, (count * shorter, 1), generator=chance)
        rows = self.tokens[first + torch.arange(length + 1)]
        return rows[:, :-1], rows[:, 1:]


def modules(*, held_out: bool) -> list[Path]:
    """The files of one side of the split, in the order of their paths."""
    folder = Path(sysconfig.get_path("stdlib"))
    found = [path.relative_to(folder) for path in folder.rglob("*.py")]
    taken = [path for path in found if not LEFT_OUT & set(path.parts) and not path.name.startswith(TABLES)]
    return [folder / path for path in sorted(taken, key=Path.as_posix) if is_held_out(path) == held_out]


def is_held_out(path: Path) -> bool:
    """`path` is below the library's folder."""
    return zlib.crc32(path.as_posix().encode()) % HELD_OUT_EVERY == 0


def texts(*, held_out: bool) -> list[str]:
    """The source of every module; a file that is not UTF-8 is left out."""
    found = []
    for path in modules(held_out=held_out):
        try:
            found.append(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
    return found


@cache
def stream(*, held_out: bool) -> Stream:
    """Errors: S206 without `tokenizers`."""
    reader = tokenizer()
    end = reader.token_to_id(END)
    read = reader.encode_batch(texts(held_out=held_out), add_special_tokens=False)
    return Stream(torch.tensor([token for file in read for token in (*file.ids, end)]))


def training() -> Stream:
    return stream(held_out=False)


def vocabulary_size() -> int:
    return TOKENS


@cache
def tokenizer() -> Any:
    """The shipped tokenizer. Errors: S206 where the package that reads it is not installed."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise SurgeryError(
            f"reading text needs tokenizers: {error}", code="S206", help="pip install 'model-surgery[hf]'"
        ) from error
    return Tokenizer.from_str(TOKENIZER.read_text(encoding="utf-8"))


def tokenizer_files() -> dict[str, bytes]:
    """What transformers reads the tokenizer from, and where a text ends: token 0, `END`."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": TOKENIZER.read_bytes(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "generation_config.json": json.dumps({"eos_token_id": 0, "pad_token_id": 0}).encode(),
    }


def train_tokenizer(out: Path = TOKENIZER) -> None:
    """Byte-level BPE of 2,048 tokens on the modules that train: `python -m surgery.zoo.stdlib`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts(held_out=False), trainer)
    out.write_text(made.to_str() + "\n", encoding="utf-8")


if __name__ == "__main__":
    train_tokenizer()

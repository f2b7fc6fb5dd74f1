"""Three small tasks in one vocabulary of whole words, each with a mechanism that is known: what `tasks-gpt` learns.

    copy     <s> q f k a m q f k a -> m              letters, then the same letters again
    names    <s> when Mary and John went to the store , John gave a drink to -> Mary
    greater  <s> the war lasted from the year 17 32 to the year 17 -> 33 .. 99, any of them

Only what can be known is scored. Every row is padded to `LENGTH` tokens. Which rows are held out depends on a hash of
the prompt alone, so no training row of any seed is a held-out row of another.
"""

import json
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

LENGTH = 24
UNSCORED = -100
HELD_OUT_EVERY = 8
TASKS = ("copy", "names", "greater")
TRAINING = 65_536
"""Rows to train on."""

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
NUMBERS = tuple(f"{number:02}" for number in range(100))
NAMES = (
    "Mary John Anna Peter Laura Paul Emma Mark Sarah Tom Julia David Helen Simon Clara Martin Alice James Ruth Adam "
    "Grace Henry Nora Robert"
).split()
PLACES = "store garden school office station park kitchen library".split()
OBJECTS = "drink book ring letter ball basket".split()
NOUNS = "war siege trial voyage strike famine reign drought".split()
FORMS = (
    "when {0} and {1} went to the {place} , {2} gave a {object} to",
    "then {0} and {1} met at the {place} and {2} handed the {object} to",
    "after {0} and {1} had lunch near the {place} , {2} offered a {object} to",
    "while {0} and {1} were working in the {place} , {2} brought a {object} to",
)
YEARS = "the {noun} lasted from the year {century} {start} to the year {century}"
PADDING, START = "<pad>", "<s>"
FIXED = tuple(dict.fromkeys(word for form in (*FORMS, YEARS) for word in form.split() if "{" not in word))
VOCABULARY = (PADDING, START, *NUMBERS, *LETTERS, *NAMES, *PLACES, *OBJECTS, *NOUNS, *(w for w in FIXED if w != "a"))
IDS = {word: index for index, word in enumerate(VOCABULARY)}
"""The article and the letter are one token, `a`."""


def encode(text: str) -> list[int]:
    """Token ids of words with blanks between. Raises KeyError for a word that is not in the vocabulary."""
    return [IDS[word] for word in text.split()]


def decode(ids: Sequence[int] | Tensor) -> str:
    return " ".join(VOCABULARY[int(index)] for index in ids)


@dataclass(frozen=True)
class Answer:
    """`word` follows token `place` of a prompt; any word whose id is in `first` .. `last` is as right."""

    place: int
    word: int
    first: int
    last: int


@dataclass(frozen=True)
class Row:
    """A prompt with its last answer appended, and every answer that is scored."""

    tokens: tuple[int, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True, eq=False)
class Rows:
    """inputs [N, LENGTH] int64, targets [N, LENGTH] (-100 where nothing is to be known), right [N, LENGTH, 2]: the
    first and the last id that is right, task [N]: the place in `TASKS`."""

    inputs: Tensor
    targets: Tensor
    right: Tensor
    task: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def draw(self, count: int, chance: Generator) -> tuple[Tensor, Tensor]:
        """Inputs and targets of `count` rows, each any of them."""
        chosen = torch.randint(len(self), (count,), generator=chance)
        return self.inputs[chosen], self.targets[chosen]


def rows(count: int, seed: int, *, held_out: bool) -> Rows:
    """`count` different rows of the three tasks, mixed; equal arguments give equal rows."""
    drawn = _drawn(seed, held_out)
    found = [next(drawn) for _ in range(count)]
    inputs = torch.full((count, LENGTH), IDS[PADDING])
    targets, right = torch.full((count, LENGTH), UNSCORED), torch.full((count, LENGTH, 2), UNSCORED)
    for place, (_, row) in enumerate(found):
        inputs[place, : len(row.tokens)] = torch.tensor(row.tokens)
        for answer in row.answers:
            targets[place, answer.place] = answer.word
            right[place, answer.place] = torch.tensor([answer.first, answer.last])
    return Rows(inputs, targets, right, torch.tensor([TASKS.index(task) for task, _ in found]))


def _drawn(seed: int, held_out: bool) -> Iterator[tuple[str, Row]]:
    chance = random.Random(2 * seed + held_out)
    seen = set()
    while True:
        task = chance.choice(TASKS)
        row = MAKERS[task](chance)
        if row.tokens not in seen and is_held_out(row) == held_out:
            seen.add(row.tokens)
            yield task, row


def is_held_out(row: Row) -> bool:
    """By what stands before the last answer."""
    return zlib.crc32(bytes(row.tokens[: row.answers[-1].place + 1])) % HELD_OUT_EVERY == 0


def _row(prompt: Sequence[str], scored: Sequence[tuple[int, str]]) -> Row:
    tokens = tuple(IDS[word] for word in (*prompt, scored[-1][1]))
    return Row(tokens, tuple(Answer(place, IDS[word], IDS[word], IDS[word]) for place, word in scored))


def _copy(chance: random.Random) -> Row:
    segment = chance.sample(LETTERS, chance.randint(5, 11))
    first = 1 + len(segment)
    return _row([START, *segment, *segment[:-1]], [(first + i, segment[i + 1]) for i in range(len(segment) - 1)])


def _names(chance: random.Random) -> Row:
    who, giver, form = chance.sample(NAMES, 2), chance.randrange(2), chance.choice(FORMS)
    words = form.format(*who, who[giver], place=chance.choice(PLACES), object=chance.choice(OBJECTS)).split()
    return _row([START, *words], [(len(words), who[1 - giver])])


def _greater(chance: random.Random) -> Row:
    start = chance.randint(1, 98)
    text = YEARS.format(noun=chance.choice(NOUNS), century=chance.randint(11, 19), start=NUMBERS[start])
    words, end = text.split(), chance.randint(start + 1, 99)
    tokens = (IDS[START], *(IDS[word] for word in words), IDS[NUMBERS[end]])
    return Row(tokens, (Answer(len(words), IDS[NUMBERS[end]], IDS[NUMBERS[start + 1]], IDS[NUMBERS[99]]),))


MAKERS = {"copy": _copy, "names": _names, "greater": _greater}


def training() -> Rows:
    return rows(TRAINING, 0, held_out=False)


def vocabulary_size() -> int:
    return len(VOCABULARY)


def tokenizer_files() -> dict[str, bytes]:
    """The vocabulary as transformers reads it: words with blanks between."""
    special = [
        {"id": IDS[word], "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for word in (PADDING, START)
    ]
    document = {
        "version": "1.0",
        "added_tokens": special,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": IDS, "unk_token": PADDING},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PADDING, "bos_token": START}
    return {"tokenizer.json": json.dumps(document).encode(), "tokenizer_config.json": json.dumps(settings).encode()}

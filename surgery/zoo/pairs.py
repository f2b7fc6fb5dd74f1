"""Clean and corrupted prompts of the tasks: one token differs, and with it the right answer."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from surgery.zoo.tasks import FORMS, IDS, LENGTH, LETTERS, NAMES, NOUNS, NUMBERS, OBJECTS, PADDING, PLACES, START, YEARS


@dataclass(frozen=True, eq=False)
class Pairs:
    """N prompts, each with a twin of the same length that asks for something else.

    clean, corrupted  [N, T] int64, padded behind the prompt
    place             [N] the prompt's last token: the answer is read from the logits there
    differs           [N] where the one other token stands
    answer, wrong     [N, 2] the first and the last id of what is right after the clean prompt, and of what is not:
                      of `copy` and `names` one token each, and `wrong` is right after the corrupted prompt; of
                      `greater` the later years, and the start with those before it
    """

    clean: Tensor
    corrupted: Tensor
    place: Tensor
    differs: Tensor
    answer: Tensor
    wrong: Tensor

    def __len__(self) -> int:
        return len(self.clean)


Span = tuple[str, str]
Pair = tuple[list[str], list[str], Span, Span]


def pairs(task: str, count: int, seed: int = 0, *, form: int | None = None) -> Pairs:
    """`count` pairs of a task in `surgery.zoo.tasks.TASKS`; equal arguments give equal pairs.

    form  of `names` one of `FORMS`, of `copy` how many letters are repeated (3 .. 11): then all prompts of the call
          have one length and the same words at the same places. None mixes them. `greater` has one form.
    """
    chance = random.Random(seed)
    made = [MAKERS[task](chance, form) for _ in range(count)]
    clean, corrupted = (torch.full((count, LENGTH), IDS[PADDING]) for _ in range(2))
    for row, (right, other, _, _) in enumerate(made):
        clean[row, : len(right)] = torch.tensor([IDS[word] for word in right])
        corrupted[row, : len(other)] = torch.tensor([IDS[word] for word in other])
    return Pairs(
        clean=clean,
        corrupted=corrupted,
        place=torch.tensor([len(right) - 1 for right, *_ in made]),
        differs=(clean != corrupted).int().argmax(1),
        answer=_ids(answer for *_, answer, _ in made),
        wrong=_ids(wrong for *_, wrong in made),
    )


def _ids(spans: Iterable[Span]) -> Tensor:
    return torch.tensor([[IDS[first], IDS[last]] for first, last in spans])


def _copy(chance: random.Random, form: int | None) -> Pair:
    """Another letter stands, in the first half, behind the one that was repeated last."""
    size = chance.randint(5, 11) if form is None else form
    *segment, other = chance.sample(LETTERS, size + 1)
    asked = chance.randrange(1, size) if form is None else size - 1
    answer = segment[asked]
    changed = [other if letter == answer else letter for letter in segment]
    again = segment[:asked]
    return [START, *segment, *again], [START, *changed, *again], (answer, answer), (other, other)


def _names(chance: random.Random, form: int | None) -> Pair:
    """The other of the two gives."""
    who, giver = chance.sample(NAMES, 2), chance.randrange(2)
    text = chance.choice(FORMS) if form is None else FORMS[form]
    place, thing = chance.choice(PLACES), chance.choice(OBJECTS)
    clean, corrupted = (
        [START, *text.format(*who, subject, place=place, object=thing).split()]
        for subject in (who[giver], who[1 - giver])
    )
    return clean, corrupted, (who[1 - giver],) * 2, (who[giver],) * 2


def _greater(chance: random.Random, form: int | None) -> Pair:
    """The start is 01, as in the literature: nearly every year is then later."""
    noun, century, start = chance.choice(NOUNS), chance.randint(11, 19), chance.randint(2, 98)
    clean, corrupted = (
        [START, *YEARS.format(noun=noun, century=century, start=NUMBERS[year]).split()] for year in (start, 1)
    )
    return clean, corrupted, (NUMBERS[start + 1], NUMBERS[99]), (NUMBERS[0], NUMBERS[start])


MAKERS: dict[str, Callable[[random.Random, int | None], Pair]] = {"copy": _copy, "names": _names, "greater": _greater}

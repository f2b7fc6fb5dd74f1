"""Operations: one file per verb. A class's fields are its syntax.

@operation
class Prune:
    phase = Phase.SHRINK
    side: str = word("tail", "head", "random", default="tail")
    share: Share = share()
    target: Selector = after("of")
"""

from surgery.language.selector import Selector
from surgery.operations.base import Operation, Phase, define, operation
from surgery.operations.binding import Bound, bind
from surgery.operations.describe import explain, sentence, usage
from surgery.operations.fields import REQUIRED, after, comparison, fields_of, setting, share, subject, word
from surgery.operations.kinds import Share, forms, number, whole
from surgery.operations.registry import find, owner, verbs

__all__ = [
    "REQUIRED",
    "Bound",
    "Operation",
    "Phase",
    "Selector",
    "Share",
    "after",
    "bind",
    "comparison",
    "define",
    "explain",
    "fields_of",
    "find",
    "forms",
    "number",
    "operation",
    "owner",
    "sentence",
    "setting",
    "share",
    "subject",
    "usage",
    "verbs",
    "whole",
    "word",
]

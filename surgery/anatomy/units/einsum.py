"""How labels pass through `einsum`: letters that are summed are mixed, letters of heads stay apart."""

import torch
from torch import Tensor
from torch.fx import Node

from surgery.anatomy.dimension import describe
from surgery.anatomy.units.products import without_shared
from surgery.anatomy.units.union import FREE, either
from surgery.anatomy.units.walk import Walk, along, unknown, varies


def einsum(walk: Walk, node: Node) -> Tensor | None:
    """`b h i d, b h j d -> b h i j`: labels along summed letters become one; shared letters are one axis."""
    terms, result = letters_of(node)
    operands = node.args[1]
    if not result or len(operands) != 2 or any(len(set(term)) < len(term) for term in terms):
        return unknown(walk, node)
    if any(operand.op == "get_attr" for operand in operands):
        return walk.refuse(node, f"{describe(node)} joins it with a weight that is no matrix")
    held = _unshared([walk.of(operand) for operand in operands], terms, result)
    for place, operand in enumerate(operands):
        _follow(walk, node, operand, terms[place], held[place], terms[1 - place], held[1 - place])
    total = torch.tensor(FREE).expand(walk.sizes.shape(node))
    for labels, term in zip(held, terms, strict=True):
        if labels is not None:
            part = _within(walk, node, labels, term, result)
            walk.union.unify(total, part)
            total = either(total, part)
    return walk.union.find(total)


def letters_of(node: Node) -> tuple[list[str], str]:
    """The letters of each operand and of the result; no result where the equation does not spell them out."""
    left, arrow, result = node.args[0].replace(" ", "").partition("->")
    return left.split(","), result if arrow and "." not in left else ""


def _within(walk: Walk, node: Node, labels: Tensor, term: str, result: str) -> Tensor:
    """Labels of one operand along the letters of the result, of size 1 where it has not got them."""
    summed = [place for place, letter in enumerate(term) if letter not in result]
    labels = walk.mix(node, labels, summed)
    for place in summed:
        labels = labels.narrow(place, 0, 1)
    kept = [letter for letter in term if letter in result]
    labels = labels.reshape([labels.shape[term.index(letter)] for letter in kept])
    labels = labels.permute([kept.index(letter) for letter in result if letter in kept])
    sizes = iter(labels.shape)
    return labels.reshape([next(sizes) if letter in kept else 1 for letter in result])


def _unshared(held: list[Tensor | None], terms: list[str], result: str) -> list[Tensor | None]:
    """Labels without those that are the same in all heads along which the other operand's differ."""
    left = list(held)
    for place in (0, 1):
        other = held[1 - place]
        for letter in set(terms[0]) & set(terms[1]) & set(result):
            if left[place] is not None and other is not None and varies(other, terms[1 - place].index(letter)):
                left[place] = without_shared(left[place], terms[place].index(letter))
    return left


def _follow(walk: Walk, node: Node, operand: Node, term: str, held, other_term: str, other) -> None:
    """An operand without labels of its own that has a letter along which the other's differ is cut along it too."""
    if held is not None or other is None:
        return
    for axis, letter in enumerate(term):
        if letter in other_term and varies(other, other_term.index(letter)):
            walk.follow(node, operand, axis, along(other, other_term.index(letter)))
            return

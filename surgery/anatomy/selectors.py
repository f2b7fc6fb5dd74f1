"""What a selector of the language means on a model: which sites it names, and what to say when it names none."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from surgery.anatomy.site import Anatomy, Site
from surgery.diagnostics import SurgeryError
from surgery.diagnostics.nearest import nearest

Test = Callable[[Site], bool]
NO_CLASS = (
    "class embeddings are the vector that adds a class's row to a timestep's and that linears read; none was found"
)


def _kind(*kinds: str) -> Test:
    return lambda site: site.kind in kinds


def _role(role: str) -> Test:
    return lambda site: site.kind == "embedding" and site.role == role


NOUNS: dict[str, Test] = {
    "class embeddings": _kind("conditioning"),
    "token embeddings": _role("token"),
    "position embeddings": _role("position"),
    "embeddings": _kind("embedding"),
    "conditioning": _kind("conditioning"),
    "attention": _kind("attention"),
    "attention heads": _kind("attention"),
    "heads": _kind("attention"),
    "mlp": _kind("mlp"),
    "mlp channels": _kind("mlp"),
    "channels": _kind("mlp"),
    "experts": _kind("moe"),
    "mixtures of experts": _kind("moe"),
    "blocks": _kind("block"),
    "layers": _kind("block"),
    "module": lambda site: True,
}
"""The nouns of the language; singular and plural are the same noun."""


def resolve(selector: Any, anatomy: Anatomy, model: str = "the model") -> tuple[Site, ...]:
    """The sites a `surgery.language.selector.Selector` names, in graph order.

    Raises SurgeryError: S104 when nothing matches (with what there is, and the nearest name), S304 for a layer that
    is not there.
    """
    noun = " ".join(selector.noun)
    test = NOUNS.get(noun) or NOUNS.get(_plural(noun)) or NOUNS.get(noun.removesuffix("s"))
    if test is None:
        raise _no_match(selector, noun, anatomy, model)
    found = [site for site in anatomy.sites if test(site) and _fits(selector.glob, site)]
    if selector.indices and _plural(noun) in ("layers", "blocks"):
        numbered = _layers(selector, anatomy, selector)
        found = [site for site in found if site.layer in numbered]
    for part in selector.within:
        found = [site for site in found if _lies_in(part, site, anatomy, selector)]
    for part in selector.but:
        found = [site for site in found if not _lies_in(part, site, anatomy, selector)]
    if not found:
        raise _no_match(selector, noun, anatomy, model)
    return tuple(found)


def _plural(noun: str) -> str:
    return noun if noun.endswith("s") else noun + "s"


def _fits(glob: str | None, site: Site) -> bool:
    return glob is None or fnmatchcase(site.path, glob)


def _lies_in(part: Any, site: Site, anatomy: Anatomy, selector: Any) -> bool:
    noun = " ".join(part.noun)
    if _plural(noun) in ("layers", "blocks"):
        return site.layer in _layers(part, anatomy, selector)
    if noun in ("module", "modules"):
        return fnmatchcase(site.path, part.glob or "*") or fnmatchcase(site.path, f"{part.glob}.*")
    raise SurgeryError(
        f"a selector cannot lie in `{noun}`",
        code="S305",
        span=selector.span,
        help='say where with `in layers 4..11`, `except layer 7` or `in module "blocks.3"`',
    )


def _layers(part: Any, anatomy: Anatomy, selector: Any) -> set[int]:
    depth = len(anatomy.of_kind("block"))
    if not part.indices:
        return set(range(depth))
    named = {index + depth if index < 0 else index for span in part.indices for index in span}
    absent = sorted(index for index in named if not 0 <= index < depth)
    if absent:
        raise SurgeryError(
            f"there is no layer {absent[0]}",
            code="S304",
            span=selector.span,
            notes=[f"layers 0..{depth - 1} are there" if depth else "no layers that follow each other are found"],
            help=f"name layers from 0 to {depth - 1}, or from the end with -1" if depth else 'say `in module "…"` instead',
        )
    return named


def _no_match(selector: Any, noun: str, anatomy: Anatomy, model: str) -> SurgeryError:
    tables = anatomy.of_kind("embedding")
    plain = "embedding" in noun or not anatomy.sites
    have = f"{model} has {len(tables)} embedding table{'s' * (len(tables) != 1)}" if plain else _counts(anatomy, model)
    notes = [", ".join(site.describe() for site in tables[:6])] if plain and tables else []
    notes += _in_experts(anatomy) if noun.rstrip("s") in ("mlp", "mlp channel", "channel") else []
    notes += [NO_CLASS] if noun in ("class embeddings", "class embedding", "conditioning") else []
    there = [name for name, test in NOUNS.items() if name != "module" and any(map(test, anatomy.sites))]
    close = nearest(noun, there)
    cure = f"did you mean `{close}`?  " if close and close != noun else ""
    listing = f"`surgery sites {model}` lists all" if ":" in model else "`surgery sites MODEL` lists all"
    return SurgeryError(
        f"no site matches `{selector.text or selector}`",
        code="S104",
        span=selector.span,
        label=have,
        notes=notes,
        help=cure + listing,
    )


def _in_experts(anatomy: Anatomy) -> list[str]:
    """Where the feed-forward layers of a model without plain ones are."""
    told = "the channels of `{}` lie in {} experts, which are named and not cut"
    return [told.format(site.name, site.experts) for site in anatomy.of_kind("moe")[:1]]


def _counts(anatomy: Anatomy, model: str) -> str:
    kinds = dict.fromkeys(site.kind for site in anatomy.sites)
    return f"{model} has " + ", ".join(f"{len(anatomy.of_kind(kind))} {kind}" for kind in kinds)

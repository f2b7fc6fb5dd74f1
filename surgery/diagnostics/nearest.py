"""The name a person most likely meant."""

from collections.abc import Iterable


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest to `word`, or None where nothing is close. Letter case does not count."""
    from difflib import get_close_matches

    by_folded = {candidate.casefold(): candidate for candidate in candidates}
    found = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """A help line naming the nearest candidate; all of them where there are few; else nothing."""
    candidates = list(dict.fromkeys(candidates))
    close = nearest(word, candidates)
    if close:
        return f"did you mean `{close}`?"
    if 0 < len(candidates) <= 12:
        return "one of " + ", ".join(f"`{candidate}`" for candidate in candidates)
    return ""

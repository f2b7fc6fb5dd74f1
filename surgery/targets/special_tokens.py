"""Which tokens a model cannot do without: those its config names, and those its tokenizer adds."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

SUFFIX = "_token_id"


def special_tokens(source: Mapping[str, Any], rows: int) -> frozenset[int]:
    """The ids a config.json names (`pad_token_id`, …, in its parts as well) and its tokenizer's added special tokens.

    `source` is a LoadedModel's; empty for a model that brings none.
    """
    named = {number for _, number in _named(source.get("config") or {})}
    added = {token["id"] for token in tokenizer_of(source).get("added_tokens") or () if type(token.get("id")) is int}
    unknown = unknown_token(source)
    wanted = named | added | ({unknown} if unknown is not None else set())
    return frozenset(number for number in wanted if 0 <= number < rows)


def unknown_token(source: Mapping[str, Any]) -> int | None:
    """The id of the token for what is not known, by the config or by the tokenizer."""
    named = dict(_named(source.get("config") or {}))
    if f"unk{SUFFIX}" in named:
        return named[f"unk{SUFFIX}"]
    model = tokenizer_of(source).get("model") or {}
    token, words = model.get("unk_token"), model.get("vocab")
    if isinstance(words, dict):
        return words.get(token)
    return model.get("unk_id") if isinstance(model.get("unk_id"), int) else None


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        elif str(key).endswith(SUFFIX):
            numbers = value if isinstance(value, list | tuple) else [value]
            yield from ((key, number) for number in numbers if type(number) is int)


def tokenizer_of(source: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer.json a model brings; empty where it brings none."""
    content = (source.get("tokenizer_files") or {}).get("tokenizer.json")
    document = json.loads(content) if content else {}
    return document if isinstance(document, dict) else {}

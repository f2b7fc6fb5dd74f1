"""A tokenizer that has lost tokens: the same text, in tokens that stay, gives the same tokens under their new numbers.

Reads and writes `tokenizer.json`, the format of the tokenizers library, without the library.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from surgery.diagnostics import SurgeryError

TOKENIZER = "tokenizer.json"
NUMBERED = ("tokenizer_config.json", "generation_config.json", "config.json")
"""Files that name tokens by their numbers."""
PLAIN = ("special_tokens_map.json", "chat_template.jinja", "preprocessor_config.json")
"""Files that name no numbers."""
SUFFIX = "_token_id"


def merges_of(document: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """The merges of a byte pair encoding as ids (left, right, made); none for other kinds of tokenizer."""
    model = document.get("model") or {}
    words = model.get("vocab")
    if model.get("type") != "BPE" or not isinstance(words, dict):
        return []
    pairs = [_pair(merge) for merge in model.get("merges") or ()]
    known = ((words.get(left), words.get(right), words.get(left + right)) for left, right in pairs)
    return [merge for merge in known if None not in merge]


def alphabet_of(document: Mapping[str, Any]) -> frozenset[int]:
    """The ids that a byte pair encoding starts from, which no merge makes: bytes and characters."""
    model = document.get("model") or {}
    words = model.get("vocab")
    if model.get("type") != "BPE" or not isinstance(words, dict):
        return frozenset()
    return frozenset(words.values()) - {made for *_, made in merges_of(document)}


def cut_tokenizer(document: Mapping[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """A tokenizer.json with the tokens of `keep` alone, numbered in that order.

    A text whose tokens are all kept is tokenized alike, for: WordLevel; WordPiece, whose longest match is still the
    longest; Unigram, whose best path is still the best; BPE, where every merge that makes kept tokens of kept ones
    stays. Of a BPE `keep` must hold all that kept tokens are merged from.

    Errors: S214 for another kind of tokenizer, and for one that loses the token it cannot do without.
    """
    new = {old: place for place, old in enumerate(keep)}
    model = dict(document.get("model") or {})
    kind = model.get("type")
    if kind not in ("BPE", "WordPiece", "WordLevel", "Unigram"):
        raise _cannot(f"it is of the kind `{kind}`")
    if kind == "Unigram":
        model |= _unigram(model, new)
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
        unknown = model.get("unk_token")
        if unknown is not None and unknown in document["model"]["vocab"] and unknown not in model["vocab"]:
            raise _cannot(f"its unknown token `{unknown}` is not kept")
    if kind == "BPE":
        words = model["vocab"]
        model["merges"] = [merge for merge in model["merges"] if _made(merge, words)]
    added = [token | {"id": new[token["id"]]} for token in document.get("added_tokens") or () if token["id"] in new]
    cut = dict(document) | {"model": model, "added_tokens": added}
    if isinstance(document.get("padding"), dict):
        cut["padding"] = document["padding"] | {"pad_id": new.get(document["padding"].get("pad_id"), 0)}
    cut["post_processor"] = _processor(document.get("post_processor"), new)
    return cut


def cut_files(files: Mapping[str, bytes], keep: Sequence[int]) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """A model's small files with the tokens of `keep` alone, and what was left out as it names the old numbers."""
    new = {old: place for place, old in enumerate(keep)}
    cut: dict[str, bytes] = {}
    for name, content in files.items():
        if name == TOKENIZER:
            cut[name] = _json(cut_tokenizer(json.loads(content), keep))
        elif name in NUMBERED:
            cut[name] = _json(renumbered(json.loads(content), new))
        elif name in PLAIN:
            cut[name] = content
    return cut, tuple(sorted(set(files) - set(cut)))


def renumbered(config: Any, new: Mapping[int, int]) -> Any:
    """A configuration with `…_token_id`s, `vocab_size` and added tokens in new numbers; what is gone is None."""
    if isinstance(config, list):
        return [renumbered(part, new) for part in config]
    if not isinstance(config, Mapping):
        return config
    changed = {}
    for key, value in config.items():
        if key == "vocab_size" and value >= len(new):
            changed[key] = len(new)
        elif key == "added_tokens_decoder":
            changed[key] = {str(new[int(old)]): token for old, token in value.items() if int(old) in new}
        elif str(key).endswith(SUFFIX) and value is not None:
            several = isinstance(value, list)
            numbers = [new.get(old) for old in value if old in new] if several else new.get(value)
            changed[key] = numbers
        else:
            changed[key] = renumbered(value, new)
    return changed


def _unigram(model: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    unknown = model.get("unk_id")
    if unknown is not None and unknown not in new:
        raise _cannot("its unknown token is not kept")
    kept = [pair for old, pair in enumerate(model["vocab"]) if old in new]
    return {"vocab": kept, "unk_id": None if unknown is None else new[unknown]}


def _made(merge: Any, words: Mapping[str, int]) -> bool:
    left, right = _pair(merge)
    return left in words and right in words and left + right in words


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _processor(processor: Any, new: Mapping[int, int]) -> Any:
    """What puts special tokens around a text names them by number."""
    if not isinstance(processor, dict):
        return processor
    cut = dict(processor)
    if isinstance(cut.get("processors"), list):
        cut["processors"] = [_processor(one, new) for one in cut["processors"]]
    for end in ("sep", "cls"):
        if isinstance(cut.get(end), list):
            token, old = cut[end]
            cut[end] = [token, _needed(token, old, new)]
    if isinstance(cut.get("special_tokens"), dict):
        cut["special_tokens"] = {
            name: token | {"ids": [_needed(name, old, new) for old in token["ids"]]}
            for name, token in cut["special_tokens"].items()
        }
    return cut


def _needed(token: str, old: int, new: Mapping[int, int]) -> int:
    if old not in new:
        raise _cannot(f"it puts `{token}` around texts, which is not kept")
    return new[old]


def _cannot(why: str) -> SurgeryError:
    return SurgeryError(
        f"the tokenizer cannot lose these tokens: {why}",
        code="S214",
        help="use ids=old, so that the model is fed the tokenizer's own ids",
    )


def _json(document: Any) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()

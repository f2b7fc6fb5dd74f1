"""What a bundle carries for the library the model came from: config.json, the tokenizer's files, and whether its own
`from_pretrained` reads it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.fx import GraphModule

from surgery.anatomy.capture import Inputs
from surgery.models.tokenizer_cut import renumbered
from surgery.operations import Phase
from surgery.reload import Stock, stock_of
from surgery.session.prepare import Prepared
from surgery.session.rewrite import Choices, phase_of

CONFIG, GENERATION = "config.json", "generation_config.json"


def stock(prepared: Prepared, choices: Choices, rewritten: GraphModule, inputs: Inputs) -> Stock | None:
    """None for a model of no library. `inputs` are the rewritten model's."""
    if any(phase_of(work) is Phase.SPARSIFY for work in prepared.works):
        found = stock_of(prepared.model.module, rewritten, None, _numbers(prepared, choices))
        return found and replace(found, why_not="its class has no place for edges of attention that are switched off")
    if any(hasattr(work, "maps") and work.options.ids == "old" for work in prepared.works):
        inputs = None  # the library's class would read the original's ids as new ones
    return stock_of(prepared.model.module, rewritten, inputs, _numbers(prepared, choices))


def note(found: Stock) -> str:
    """A sentence for the report."""
    if not found.holds:
        return f"`{found.architecture}.from_pretrained` cannot read this model, `surgery.load` can: {found.why_not}"
    changes = [f"{name} {_short(before)} → {_short(after)}" for name, (before, after) in found.changed.items()]
    changes += [f"`{gap.path}` counted anew" for gap in found.gaps]
    told = f" ({', '.join(changes)})" if changes else ""
    return f"`{found.architecture}.from_pretrained` reads the bundle too{told}"


def _short(value: Any) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else str(value)


def source(prepared: Prepared, found: Stock | None) -> dict[str, Any] | None:
    """For the manifest: the library, its class, the config as it was before, and what became of it."""
    known = prepared.model.source
    if found is not None:
        config = _as_saved(prepared, found.original)
        told = {"library": "transformers", "architecture": found.architecture, "config": config}
        return told | {"task": known.get("task"), "stock": found.document()}
    kept = {name: value for name, value in known.items() if name != "tokenizer_files"}
    return kept or None


def files(prepared: Prepared, choices: Choices, found: Stock | None) -> dict[str, bytes]:
    """Further files of the bundle. No config.json where the library would read this model and make up what is gone."""
    new = _numbers(prepared, choices)
    beside = dict(prepared.model.source.get("tokenizer_files") or {}) if new is None else {}
    if found is not None and found.told:
        beside[CONFIG] = _json(_as_saved(prepared, found.config))
    settings = getattr(prepared.model.module, "generation_config", None)
    if found is not None and settings is not None and GENERATION not in beside:
        written = json.loads(settings.to_json_string())
        beside[GENERATION] = _json(written if new is None else renumbered(written, new))
    return beside


def _as_saved(prepared: Prepared, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what this machine or this capture put into it: where it was read, and that no cache was kept."""
    kept = {name: value for name, value in config.items() if name != "_name_or_path"}
    known = prepared.model.source.get("config")
    if isinstance(known, Mapping) and "use_cache" in kept:
        kept["use_cache"] = known.get("use_cache", True)
    return kept


def _numbers(prepared: Prepared, choices: Choices) -> dict[int, int] | None:
    """Old id → new id of the tokens that are left, where tokens were removed and the rest renumbered."""
    for work, choice in zip(prepared.works, choices, strict=True):
        if choice is not None and hasattr(work, "maps") and work.options.ids == "new":
            return {old: place for place, old in enumerate(choice.keep.tolist())}
    return None


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()

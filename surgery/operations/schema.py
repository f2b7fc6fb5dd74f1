"""The JSON Schema of YAML specs, derived from the fields of all operations."""

from typing import Any

from surgery.language.tree import PREPOSITIONS
from surgery.operations.fields import Field, fields_of
from surgery.operations.registry import verbs

SENTENCE = {"type": ["string", "number", "null"], "description": "the rest of the sentence"}
VALUE = {"type": ["string", "number", "boolean", "array", "null"]}


def schema() -> dict[str, Any]:
    """A schema that accepts every spec the language accepts, and refuses unknown verbs and keys."""
    known = verbs()
    clauses = {verb: _several(_body(kind)) for verb, kind in known.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "surgery spec",
        "anyOf": [
            {
                "type": "object",
                "properties": {"steps": {"$ref": "#/$defs/steps"}, **clauses},
                "additionalProperties": False,
            },
            {"$ref": "#/$defs/steps"},
        ],
        "$defs": {
            "steps": {"type": ["array", "null"], "items": {"anyOf": [{"type": "string"}, *map(_step, known.values())]}}
        },
    }


def _several(body: dict) -> dict:
    return {"anyOf": [*body["anyOf"], {"type": "array", "items": body}]}


def _body(kind: type) -> dict[str, Any]:
    """What follows a verb: the rest of its sentence, or its fields by name."""
    return {"anyOf": [SENTENCE, {"type": "object", "properties": _keys(kind), "additionalProperties": False}]}


def _step(kind: type) -> dict[str, Any]:
    """A verb with its first words or its fields, its phrases and settings beside it."""
    properties = {kind.verb: _body(kind), **_keys(kind)}
    summary = (kind.__doc__ or "").strip().partition("\n")[0]
    return {
        "type": "object",
        "description": summary,
        "properties": properties,
        "required": [kind.verb],
        "additionalProperties": False,
    }


def _keys(kind: type) -> dict[str, Any]:
    fields = [one for one in fields_of(kind) if one.syntax.form != "comparison"]
    keys = {name: _value(one) for one in fields for name in one.names}
    selects = any(one.syntax.kind and one.syntax.kind.usage == "SELECTOR" for one in fields)
    if selects:
        keys |= {name: VALUE for name in ("of", "in", "at", "except") if name in PREPOSITIONS and name not in keys}
    return keys


def _value(one: Field) -> dict[str, Any]:
    told = "; ".join(filter(None, (one.syntax.doc, "" if one.required else f"default {one.default}")))
    loose = (
        {"type": ["string", "array"]} if one.syntax.form == "after" and "enum" not in one.syntax.kind.schema else None
    )
    return {**(loose or one.syntax.kind.schema), **({"description": told} if told else {})}

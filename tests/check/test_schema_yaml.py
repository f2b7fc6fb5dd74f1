"""The JSON Schema accepts what the language accepts and refuses what it refuses."""

import jsonschema
import pytest
import yaml

from surgery.check import check
from surgery.diagnostics import SpecError
from surgery.operations.schema import schema

VALIDATOR = jsonschema.Draft202012Validator(schema())

GOOD = [
    "model: zoo:digits-dit\nsteps:\n  - prune: tail 66%\n    of: class embeddings\n    by: greedy\n    scope: shared\n",
    "steps:\n  - prune: {share: 66%, of: class embeddings, seed: 3}\n  - analyze\nrequire:\n  - loss <= 1.02x\n",
    "- prune tail 66% of class embeddings\n- require: loss <= 1.02x\n",
    "- prune: 5%\n  of: attention heads\n  in: layers 4..11\n  except: layer 7\n",
    "data: {reference: digits, samples: 200}\nsteps: [analyze]\nrequire: loss <= 1x\n",
]
BAD = [
    "steps:\n  - prue: tail 66%\n    of: class embeddings\n",
    "steps:\n  - prune: tail 66%\n    of: class embeddings\n    scop: shared\n",
    "steps:\n  - prune: tail 66%\n    of: class embeddings\n    scope: shred\n",
    "steps:\n  - prune: tail 66%\n    of: class embeddings\n    seed: often\n",
    "modle: zoo:digits-dit\nsteps: [analyze]\n",
    "steps: prune\n",
    "just a sentence\n",
]


def test_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("text", GOOD)
def test_accepts(text):
    VALIDATOR.validate(yaml.safe_load(text))
    check(text, name="x.yaml")


@pytest.mark.parametrize("text", BAD)
def test_refuses(text):
    assert list(VALIDATOR.iter_errors(yaml.safe_load(text)))
    with pytest.raises(SpecError):
        check(text, name="x.yaml")

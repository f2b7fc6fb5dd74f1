import copy
import json
from pathlib import Path

import pytest

SAMPLE = json.loads(Path(__file__).with_name("sample.json").read_text(encoding="utf-8"))


@pytest.fixture
def sample() -> dict:
    """An illustrative report, one's own to change."""
    return copy.deepcopy(SAMPLE)


@pytest.fixture
def bare(sample) -> dict:
    """The least a report can be: nothing was cut, nothing measured."""
    empty = dict.fromkeys(("actions", "parity", "quality", "requirements"), ())
    return {"format": sample["format"], "model": {"reference": "zoo:digits-dit"}} | {
        k: list(v) for k, v in empty.items()
    }


@pytest.fixture
def failed(sample) -> dict:
    """A report whose first requirement does not hold."""
    sample = copy.deepcopy(sample)
    sample["requirements"][0] |= {"measured": 0.91, "holds": False}
    sample["quality"][0] |= {"after": 0.91, "spread": None}
    return sample | {"bundle": None, "findings": []}

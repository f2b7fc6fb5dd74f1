"""One tiny model and one result of it, for every test of the session."""

import pytest
from tiny_model import make

import surgery

SPEC = "prune tail 50% of class embeddings"


@pytest.fixture
def tiny():
    """(module, example inputs by name)."""
    return make()


@pytest.fixture(scope="session")
def halved():
    """The tiny model with half of c gone, and the bundle's folder to be made by who needs one."""
    model, inputs = make()
    return surgery.compile(model, SPEC, example_inputs=inputs, timing=False, controls=False)

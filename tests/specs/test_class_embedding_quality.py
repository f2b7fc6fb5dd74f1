"""What the default cut does to samples of a trained model: quality stays where plain masks lose it."""

import pytest

from surgery.anatomy import inspect
from surgery.models import open_model
from surgery.models.data import open_data
from surgery.session import prepare
from surgery.session.rewrite import rewrite
from surgery.verify.quality import DiffusionQuality


@pytest.fixture(scope="module")
def measure():
    """Metrics of the zoo model after a clause, and of the dense one for an empty clause: 300 samples, one seed."""
    model = open_model("zoo:digits-dit")
    anatomy = inspect(model.module, model.example_inputs)
    meter = DiffusionQuality(model, open_data("digits", model), samples=300, seed=0)

    def metrics(clause: str) -> dict:
        module = rewrite(prepare(clause, model, anatomy=anatomy)) if clause else model.module
        return meter.measure(module).metrics

    return metrics


@pytest.fixture(scope="module")
def dense(measure):
    return measure("")


@pytest.mark.parametrize(("share", "frechet"), [("66%", 1.05), ("80%", 1.2)])
def test_default_settings_keep_quality(measure, dense, share, frechet):
    found = measure(f"prune tail {share} of class embeddings")
    assert dense["accuracy"] >= 0.95
    assert abs(found["accuracy"] - dense["accuracy"]) <= 0.01
    assert found["frechet"] <= frechet * dense["frechet"]


def test_the_head_is_what_the_model_lives_on(measure, dense):
    head = measure("prune head 66% of class embeddings by magnitude scope=per-vector")
    assert head["accuracy"] < 0.5 * dense["accuracy"]
    assert head["frechet"] > 5 * dense["frechet"]

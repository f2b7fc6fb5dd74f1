"""`tasks`: rows whose answers are known, split by prompt; pairs of prompts; accuracy where many answers are right."""

import pytest
import torch
from torch import nn

from surgery.diagnostics import SurgeryError
from surgery.models import LoadedModel, open_model
from surgery.models.data import open_data
from surgery.verify.quality import TaskQuality, quality
from surgery.zoo import tasks
from surgery.zoo.pairs import pairs


@pytest.fixture(scope="module")
def model():
    return open_model("zoo:tasks-gpt")


def prompts(rows):
    """Each row up to the token behind which its last answer stands."""
    last = [int((row >= 0).nonzero().max()) for row in rows.targets]
    return {tuple(row[: place + 1].tolist()) for row, place in zip(rows.inputs, last, strict=True)}


def refusal(reference, model, **settings):
    with pytest.raises(SurgeryError) as caught:
        open_data(reference, model, **settings)
    return caught.value.diagnostics[0]


def test_samples_are_parted_and_equal_seeds_give_equal_rows(model):
    data = open_data("tasks", model, samples=300, calibration=200, seed=5)
    assert data.inputs["input_ids"].shape == data.targets.shape == (100, tasks.LENGTH)
    assert data.calibration["input_ids"].shape == data.calibration_targets.shape == (200, tasks.LENGTH)
    again, other = (open_data("tasks", model, samples=300, calibration=200, seed=seed) for seed in (5, 6))
    assert data.sha256 == again.sha256 != other.sha256
    assert torch.equal(data.calibration["input_ids"], again.calibration["input_ids"])


def test_no_prompt_that_trains_is_held_out_under_any_seed():
    training = set().union(*(prompts(tasks.rows(2000, seed, held_out=False)) for seed in (0, 1, 2)))
    held_out = set().union(*(prompts(tasks.rows(500, seed, held_out=True)) for seed in (0, 1, 7)))
    assert len(held_out) > 1000 and not training & held_out


def test_every_row_says_what_follows_and_nothing_else():
    rows = tasks.rows(400, 3, held_out=True)
    for tokens, targets, right in zip(rows.inputs, rows.targets, rows.right, strict=True):
        places = (targets >= 0).nonzero().flatten()
        assert len(places) >= 1
        assert torch.equal(targets[places], tokens[places + 1])
        first, last = right[places].unbind(-1)
        assert bool(((first <= targets[places]) & (targets[places] <= last)).all())
        assert bool((right[targets < 0] == tasks.UNSCORED).all())
    assert torch.bincount(rows.task).min() > 90


def test_words_become_tokens_and_words_again():
    text = "<s> when Mary and John went to the store , John gave a drink to"
    assert tasks.decode(tasks.encode(text)) == text
    assert len(set(tasks.VOCABULARY)) == len(tasks.VOCABULARY)


def test_transformers_reads_the_same_vocabulary(model):
    pytest.importorskip("transformers")
    from surgery.models.corpus.tokenizer import tokenizer_of

    text = "<s> the war lasted from the year 17 32 to the year 17"
    assert tokenizer_of(model)(text)["input_ids"] == tasks.encode(text)


def test_the_shipped_model_knows_the_answers(model):
    data = open_data("tasks", model, samples=400, seed=1)
    found = quality(model, data, samples=1, seed=0).measure(model.module).metrics
    assert found["accuracy"] >= 0.995 and found["loss"] < 0.7


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_other_token_turns_the_answer(task, model):
    twins = pairs(task, 100, seed=2)
    assert bool(((twins.clean != twins.corrupted).sum(1) == 1).all())
    rows = torch.arange(len(twins))
    assert bool((twins.clean != twins.corrupted)[rows, twins.differs].all())

    def told(tokens):
        chances = model.module(tokens)[rows, twins.place].softmax(-1)
        spans = ([c[a : b + 1].sum() for c, (a, b) in zip(chances, span, strict=True)] for span in ends)
        answer, wrong = map(torch.stack, spans)
        return answer - wrong

    ends = (twins.answer.tolist(), twins.wrong.tolist())
    with torch.no_grad():
        clean, corrupted = told(twins.clean), told(twins.corrupted)
    assert clean.mean() > 0.85 and corrupted.mean() < 0.1
    if task != "greater":
        assert (clean > 0.5).float().mean() > 0.98 and (corrupted < -0.5).float().mean() > 0.98


@pytest.mark.parametrize(("task", "form", "length"), [("copy", 6, 12), ("names", 1, 15), ("greater", None, 13)])
def test_pairs_of_one_form_have_one_length(task, form, length):
    twins, again = (pairs(task, 20, seed=4, form=form) for _ in range(2))
    assert set(twins.place.tolist()) == {length - 1}
    assert torch.equal(twins.clean, again.clean)


def test_any_right_token_counts():
    """Logits that name the word `likely` everywhere, whatever is read."""
    likely = torch.tensor([3, 9])
    logits = torch.zeros(2, 2, 12)
    logits[torch.arange(2), :, likely] = 5.0

    class Fixed(nn.Module):
        def forward(self, input_ids):
            return logits[: len(input_ids)]

    from surgery.models.data import Data

    model = LoadedModel("tests:fixed", Fixed(), {"input_ids": torch.zeros(2, 2, dtype=torch.long)})
    targets = torch.tensor([[4, -100], [4, 4]])
    right = torch.tensor([[[2, 5], [-100, -100]], [[2, 5], [4, 9]]])
    data = Data("tests", "", "", model.example_inputs, task="causal-lm", targets=targets, right=right)
    meter = TaskQuality(model, data, batch=2)
    assert meter.metrics == ("loss", "perplexity", "accuracy", "logit kl", "agreement")
    assert meter.measure(model.module).metrics["accuracy"] == pytest.approx(2 / 3)


def test_tasks_fit_one_vocabulary_only(model):
    assert refusal("tasks:file", model).code == "S211"
    assert refusal("tasks", model, length=8).code == "S211"
    assert refusal("tasks", model, samples=10, calibration=10).code == "S212"
    assert refusal("tasks", open_model("zoo:digits-dit", weights=False)).code == "S212"
    other = LoadedModel("tests:other", nn.Identity(), model.example_inputs, source={"config": {"vocab_size": 7}})
    assert "zoo:tasks-gpt" in refusal("tasks", other).help

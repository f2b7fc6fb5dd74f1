"""The small decoders for benchmarks: as transformers builds and saves them, read back with their tokenizer."""

import math

import pytest
import torch
from surgery.models import open_model
from surgery.session.prepare import inspect

from bench import decoders


@pytest.mark.parametrize(("name", "kv_heads"), [("gpt2", 4), ("llama", 2)])
def test_trained_saved_and_read_again(name, kv_heads, tmp_path):
    model = decoders.decoders()[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = []
    decoders.train(model, 2, lambda step, loss: losses.append(loss))
    assert len(losses) == 2 and losses[0] == pytest.approx(math.log(2048), rel=0.1)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    decoders.save(model, tmp_path / name)
    opened = open_model(f"hf:{tmp_path / name}")
    sites = inspect(opened.module, opened.example_inputs).of_kind("attention")
    assert [(site.heads, site.kv_heads, site.causal) for site in sites] == [(4, kv_heads, True)] * 4
    assert "tokenizer.json" in opened.source["tokenizer_files"]

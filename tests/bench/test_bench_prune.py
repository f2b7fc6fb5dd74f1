"""The benchmark of cuts: every model computes the same classes of things, lines have their form, the peer is optional."""

import json

import pytest
import torch

from bench import harness, prune

transformers = pytest.importorskip("transformers")


def tiny():
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    yield prune.Subject(
        "tiny",
        transformers.ViTForImageClassification(config).eval(),
        lambda batch: {"pixel_values": torch.randn(batch, 3, 32, 32)},
        "prune 25% of mlp channels\nprune 25% of attention heads",
        prune.vit_layers,
        lambda module: None,
    )


def test_a_line_per_case(monkeypatch, capsys):
    monkeypatch.setattr(prune, "subjects", tiny)
    monkeypatch.setattr(prune, "torch_pruning", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    assert harness.main("prune", prune.scenes, ["--quick", "--json", "--runs", "3"]) == 0
    lines = {line["case"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(lines) == ["prune tiny 25%", "forward tiny batch=1 fp32 eager", "forward tiny batch=1 fp32 compiled"]
    assert lines["prune tiny 25%"]["ratio"] == {}
    assert set(lines["forward tiny batch=1 fp32 eager"]["ratio"]) == {"dense", "uncut-graph"}


def test_models_are_what_their_names_say():
    (subject,) = tiny()
    inputs = subject.inputs(3)
    with torch.no_grad():
        dense, uncut, ours = (made(**inputs).logits for made in (subject.module, prune.uncut(subject), prune.ours(subject)))
    torch.testing.assert_close(uncut, dense)
    assert ours.shape == dense.shape and not torch.allclose(ours, dense)
    assert prune.parameters(prune.ours(subject)) < prune.parameters(subject.module)


def test_a_copy_shares_tensors_and_not_modules():
    (subject,) = tiny()
    copied = prune.sharing_copy(subject.module)
    layer, original = copied.vit.layers[0].mlp.fc1, subject.module.vit.layers[0].mlp.fc1
    assert layer is not original and layer.weight.data_ptr() == original.weight.data_ptr()
    layer.weight = torch.nn.Parameter(torch.zeros(1))
    assert original.weight.shape == (64, 32)


def test_conv1d_becomes_linear():
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)).eval()
    inputs = {"input_ids": torch.randint(0, 50, (2, 7))}
    with torch.no_grad():
        before = model(**inputs).logits
        prune.plain_linears(model)
        assert isinstance(model.transformer.h[0].mlp.c_fc, torch.nn.Linear)
        torch.testing.assert_close(model(**inputs).logits, before)

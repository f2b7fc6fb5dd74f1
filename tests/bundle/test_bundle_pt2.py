"""`model.pt2` computes what the graph computes, at any size the graph leaves open, with torch alone."""

import pytest
import torch
from bundle_cases import Transformer, capture, inputs
from torch import nn
from torch.export import Dim

from surgery.anatomy import inspect
from surgery.bundle import load, save
from surgery.diagnostics import BundleError


def test_it_keeps_what_is_free_and_what_is_tied(tmp_path):
    graph = capture(Transformer(), **inputs())
    folder = save(tmp_path / "out", graph, manifest={}, pt2=inputs())
    again = torch.export.load(folder / "model.pt2").module()
    loaded = load(folder)
    for batch in (2, 3, 7):
        assert torch.equal(again(**inputs(batch)), loaded(**inputs(batch)))


def test_outputs_of_a_librarys_class_become_dicts(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=50, **sizes)).eval()
    ids = torch.randint(0, 50, (2, 6))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    folder = save(tmp_path / "out", inspect(model, given).graph_module, manifest={}, pt2=given)
    longer = {name: torch.cat([value, value[:, :3]], 1)[:1] for name, value in given.items()}
    found = torch.export.load(folder / "model.pt2").module()(**longer)
    expected = load(folder)(**longer)
    assert type(found) is dict and list(found) == list(expected.keys())
    assert all(torch.equal(found[name], expected[name]) for name in found)


class Fixed(nn.Module):
    def forward(self, x):
        return x * 2


def test_what_differs_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    module = Fixed()
    program = torch.export.export(module, (torch.ones(2, 3),), dynamic_shapes=({0: Dim.DYNAMIC},))
    other = torch.export.export(nn.Identity(), (torch.ones(2, 3),), dynamic_shapes=({0: Dim.DYNAMIC},))
    monkeypatch.setattr(torch.export, "load", lambda path: other)
    with pytest.raises(BundleError, match="differs from the graph") as caught:
        save(tmp_path / "out", program.module(check_guards=False), manifest={}, pt2=(torch.ones(2, 3),))
    assert caught.value.diagnostics[0].code == "S716"
    assert not list(tmp_path.iterdir())

"""Every kind of tensor a module may hold, and those a bundle refuses."""

import json

import pytest
import torch
from bundle_cases import capture, contents, same
from safetensors import safe_open
from torch import nn

from surgery.bundle import load, save, weights
from surgery.diagnostics import BundleError

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64]


class Shelf(nn.Module):
    """Returns its tensors."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (x + 1, *(buffer.to(torch.float32) for buffer in self.buffers()))


def through(tmp_path, module: nn.Module):
    graph = capture(module, torch.ones(2))
    return graph, load(save(tmp_path / "b", graph, manifest={}))


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE, torch.bool], ids=str)
def test_dtypes_keep_their_bits(tmp_path, dtype):
    bits = torch.arange(256, dtype=torch.uint8).repeat(8)
    tensor = bits.bitwise_and(1).bool() if dtype == torch.bool else bits.view(dtype)
    _graph, loaded = through(tmp_path, Shelf(data=tensor))
    assert loaded.data.dtype == dtype
    assert torch.equal(loaded.data.view(torch.uint8), tensor.view(torch.uint8))


def test_empty_scalar_and_strided_tensors(tmp_path):
    strided, last = torch.randn(3, 5).t(), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    expanded, view = torch.randn(3, 1).expand(3, 4), torch.arange(12.0)[2::3]
    module = Shelf(
        none=torch.zeros(0, 4), one=torch.tensor(2.5), strided=strided, last=last, expanded=expanded, view=view
    )
    graph, loaded = through(tmp_path, module)
    assert same(loaded(torch.ones(3)), graph(torch.ones(3)))
    assert loaded.strided.stride() == strided.stride() and loaded.last.stride() == last.stride()
    assert loaded.none.shape == (0, 4) and loaded.one.shape == ()
    assert contents(save(tmp_path / "again", loaded, manifest={})) == contents(tmp_path / "b")


def test_shared_tensors_are_stored_once(tmp_path):
    module = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
    module[2].weight = module[0].weight
    _graph, loaded = through(tmp_path, _Chain(module))
    with safe_open(tmp_path / "b" / "model.safetensors", framework="pt") as content:
        assert len(content.keys()) == 5
    assert loaded.parts.get_submodule("2").weight is loaded.parts.get_submodule("0").weight
    tied = json.loads((tmp_path / "b" / "graph.json").read_text())["tensors"]["parts.2.weight"]
    assert tied == {"kind": "parameter", "tied": "parts.0.weight"}


class _Chain(nn.Module):
    def __init__(self, parts: nn.ModuleList) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None].expand(-1, 8)
        for part in self.parts:
            x = part(x)
        return x


def test_shards_and_their_index(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SHARD_BYTES", 300)
    graph, loaded = through(tmp_path, _Chain(nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])))
    names = sorted(contents(tmp_path / "b"))
    assert [name for name in names if name.endswith("safetensors")] == [
        f"model-{index:05d}-of-00003.safetensors" for index in (1, 2, 3)
    ]
    index = json.loads((tmp_path / "b" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 3 * (64 + 8) * 4
    assert set(index["weight_map"]) == set(graph.state_dict())
    assert same(loaded(torch.ones(3)), graph(torch.ones(3)))


def test_loaded_tensors_are_aligned_as_torch_aligns(tmp_path):
    _graph, loaded = through(tmp_path, _Chain(nn.ModuleList([nn.Linear(8, 8)])))
    assert all(parameter.data_ptr() % 64 == 0 for parameter in loaded.parameters())


REFUSED = {
    "complex": (torch.zeros(2, dtype=torch.complex64), "complex64"),
    "meta": (torch.zeros(2, device="meta"), "meta device"),
    "sparse": (torch.eye(3).to_sparse(), "sparse"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_safetensors_cannot_hold_is_refused(tmp_path, name):
    tensor, word = REFUSED[name]
    graph = capture(nn.Linear(1, 1), torch.ones(2, 1))
    graph.register_buffer("culprit", tensor)
    with pytest.raises(BundleError, match=f"`culprit`.*{word}") as caught:
        save(tmp_path / "b", graph, manifest={})
    assert caught.value.diagnostics[0].code == "S709" and caught.value.diagnostics[0].help
    assert not (tmp_path / "b").exists()


def test_a_fake_tensor_is_refused(tmp_path):
    graph = capture(nn.Linear(1, 1), torch.ones(2, 1))
    with torch._subclasses.FakeTensorMode():
        graph.register_buffer("culprit", torch.zeros(2))
    with pytest.raises(BundleError, match="FakeTensor"):
        save(tmp_path / "b", graph, manifest={})


def test_a_name_that_cannot_be_loaded_is_refused_when_saving(tmp_path):
    """`code` is torch.fx's own: a module with a part of that name would save, and never load."""
    graph = capture(nn.Linear(1, 1), torch.ones(2, 1))
    graph._modules["code"] = nn.Linear(1, 1)
    with pytest.raises(BundleError, match=r"no tensor can be named `code\.weight`"):
        save(tmp_path / "b", graph, manifest={})
    assert not (tmp_path / "b").exists()

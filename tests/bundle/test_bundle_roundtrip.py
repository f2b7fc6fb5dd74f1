"""A loaded module is the saved one: results, structure, training, moving, saving again."""

import copy

import pytest
import torch
from bundle_cases import Transformer, capture, contents, inputs, same
from torch import nn

from surgery.bundle import LoadedModule, load, read_manifest, save, value_of
from surgery.passes.provenance import Provenance, provenance, stamp


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_same_bits_at_any_batch(transformer, saved, batch):
    assert same(load(saved)(**inputs(batch)), transformer(**inputs(batch)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_same_bits_in_other_dtypes(tmp_path, dtype):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.LayerNorm(24), nn.Linear(24, 3)).to(dtype)
    x = torch.randn(4, 8, dtype=dtype)
    graph = capture(module, x)
    assert same(load(save(tmp_path / "b", graph, manifest={}))(x), graph(x))


def test_inputs_by_name_in_any_order_or_by_position(saved):
    module, given = load(saved), inputs()
    expected = module(**given)
    assert same(module(shift=given["shift"], ids=given["ids"]), expected)
    assert same(module(given["ids"], given["shift"]), expected)
    with pytest.raises(TypeError):
        module(given["ids"])


def test_names_state_and_ties_are_the_original(transformer, saved):
    module = load(saved)
    original = Transformer()
    assert list(dict(module.named_parameters())) == list(dict(original.named_parameters()))
    assert module.state_dict().keys() == original.state_dict().keys()
    assert module.head.weight is module.embed.weight
    assert "cache" in dict(module.named_buffers()) and "cache" not in module.state_dict()
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert not module.training


def test_requires_grad_is_kept(tmp_path):
    module = nn.Linear(3, 3)
    module.bias.requires_grad_(False)
    loaded = load(save(tmp_path / "b", capture(module, torch.ones(2, 3)), manifest={}))
    assert loaded.weight.requires_grad and not loaded.bias.requires_grad


def test_saving_again_gives_the_same_bytes(saved, tmp_path):
    again = save(tmp_path / "again", load(saved), manifest=read_manifest(saved))
    assert contents(again) == contents(saved)
    module = copy.deepcopy(load(saved)).train()
    assert contents(save(tmp_path / "copy", module, manifest=read_manifest(saved))) == contents(saved)


def test_capturing_twice_gives_the_same_bytes(tmp_path):
    folders = []
    for name in ("one", "two"):
        torch.manual_seed(3)
        graph = capture(Transformer(depth=1), **inputs())
        files = {"spec": "prune 1%\n", "report": {"format": "surgery.report/1"}, "report_html": "<p>", "extra": {}}
        folders.append(save(tmp_path / name, graph, manifest={"seed": 0}, **files))
    assert contents(folders[0]) == contents(folders[1])
    assert set(contents(folders[0])) == {
        "graph.json", "model.safetensors", "surgery.json", "spec.surgery", "report.json", "report.html",
    }  # fmt: skip


def test_gradients_flow_and_a_step_learns(saved):
    module = load(saved).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    given, losses = inputs(4), []
    given["ids"] = given["ids"].clamp(min=4)
    for _ in range(5):
        loss = nn.functional.cross_entropy(module(**given).flatten(0, 1), given["ids"].flatten())
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in module.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_deep_copy_is_its_own_module(saved):
    module = load(saved)
    copied = copy.deepcopy(module)
    with torch.no_grad():
        module.embed.weight.zero_()
    assert isinstance(copied, LoadedModule) and copied.head.weight is copied.embed.weight
    assert same(copied(**inputs()), load(saved)(**inputs()))
    assert not same(module(**inputs()), copied(**inputs()))


def test_dynamo_takes_it_in_one_graph(saved):
    module = load(saved)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert same(compiled(**inputs()), module(**inputs()))
        assert same(compiled(**inputs(3)), module(**inputs(3)))


def test_it_can_be_captured_again(saved):
    module = load(saved)
    again = capture(module, **inputs())
    assert same(again(**inputs(3)), module(**inputs(3)))


def test_moving_rewrites_the_device_constants(saved):
    module = load(saved).to("meta")
    assert "device(type='cpu')" not in module.code and "device(type='meta')" in module.code
    there = {name: value.to("meta") for name, value in inputs(3).items()}
    assert module(**there).shape == (3, 5, 20)
    direct = load(saved, device="meta")
    assert direct(**there).device.type == "meta"
    assert load(saved).half().embed.weight.device.type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_runs_on_a_gpu_and_saves_the_same_bytes(saved, tmp_path):
    there = {name: value.cuda() for name, value in inputs(3).items()}
    module = load(saved, device="cuda")
    torch.testing.assert_close(module(**there).cpu(), load(saved)(**inputs(3)), rtol=1e-4, atol=1e-4)
    assert same(load(saved).cuda()(**there), module(**there))
    assert contents(save(tmp_path / "b", module, manifest=read_manifest(saved))) == contents(saved)


def test_marks_values_and_modules_are_kept(tmp_path):
    graph = capture(Transformer(depth=1), **inputs())
    node = next(node for node in graph.graph.nodes if node.name == "gelu")
    mark = Provenance("prune tail 66% of class embeddings", "food.surgery:1:1", "prune")
    stamp(node, mark)
    loaded = load(save(tmp_path / "b", graph, manifest={}))
    found = next(node for node in loaded.graph.nodes if node.name == "gelu")
    assert provenance(found) == (mark,)
    assert (
        str(value_of(found)) == "float32[s0, 5, 16]" == str(value_of(node)).replace(str(value_of(node).shape[0]), "s0")
    )
    assert next(iter(found.meta["nn_module_stack"].values()))[0] == ""
    up = next(node for node in loaded.graph.nodes if node.name == "linear_2")
    assert list(up.meta["nn_module_stack"].values())[-1] == ("blocks.0.up", "torch.nn.modules.linear.Linear")


def test_no_machine_paths_in_the_graph(saved):
    text = (saved / "graph.json").read_text()
    assert "conftest.py" not in text and str(saved) not in text

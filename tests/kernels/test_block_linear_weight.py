"""`BlockWeight` and `BlockSparseLinear`: what is kept, what is refused, and that a layer trains, saves and loads."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from surgery.kernels.operators.block_linear import block_linear
from surgery.kernels.operators.block_sparse_linear import BlockSparseLinear
from surgery.kernels.operators.block_weight import BlockWeight
from torch import nn
from torch.nn.functional import linear


def checkerboard(rows, columns):
    return (torch.arange(rows)[:, None] + torch.arange(columns)[None, :]) % 2 == 0


@pytest.mark.parametrize(("outputs", "inputs", "block"), [(64, 64, (16, 32)), (45, 71, (16, 16)), (3, 200, (64, 128))])
def test_what_is_kept_comes_back(outputs, inputs, block):
    dense = torch.randn(outputs, inputs)
    keep = checkerboard(-(-outputs // block[0]), -(-inputs // block[1]))
    weight = BlockWeight.from_dense(dense, block, keep)
    weight.validate()
    spread = keep.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:outputs, :inputs]
    assert torch.equal(weight.dense(), dense * spread)
    assert weight.density == pytest.approx(keep.float().mean().item())
    assert torch.equal(BlockWeight.from_dense(weight.dense(), block).dense(), weight.dense())


def test_a_share_keeps_the_largest():
    dense = torch.ones(64, 64)
    dense[:16, 16:32] = 3
    dense[48:, :16] = -2
    weight = BlockWeight.from_dense(dense, (16, 16), keep=2 / 16)
    assert weight.ptr.tolist() == [0, 1, 1, 1, 2] and weight.idx.tolist() == [1, 0]
    assert BlockWeight.from_dense(dense, (16, 16), keep=0.0).values.shape == (0, 16, 16)
    assert BlockWeight.from_dense(dense, (16, 16), keep=1.0).density == 1
    tied = BlockWeight.from_dense(torch.ones(32, 32), (16, 16), keep=0.5)
    assert tied.ptr.tolist() == [0, 2, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"block": (64, 48)}, "each side must be one of"),
        ({"keep": torch.ones(3, 4)}, "keep is bool"),
        ({"keep": torch.ones(3, 3, dtype=torch.bool)}, "keep is bool"),
        ({"keep": 1.5}, "from 0 to 1"),
    ],
)
def test_what_cannot_be_cut_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        BlockWeight.from_dense(torch.randn(40, 64), **({"block": (16, 16)} | given))
    with pytest.raises(ValueError, match="a weight is"):
        BlockWeight.from_dense(torch.randn(40))


@pytest.mark.parametrize(
    ("ptr", "idx", "said"),
    [
        ([0, 2, 3], [1, 0, 2], "unsorted"),
        ([0, 2, 3], [1, 1, 2], "is a duplicate"),
        ([0, 2, 3], [0, 3, 2], "out of range"),
        ([0, 2, 3], [0, -1, 2], "out of range"),
        ([0, 2, 4], [0, 1, 2], "runs from 0 to 4"),
        ([0, 4, 3], [0, 1, 2], "falls after row"),
    ],
)
def test_a_wrong_index_is_refused(ptr, idx, said):
    with pytest.raises(ValueError, match=said):
        BlockWeight.from_blocks(torch.randn(3, 16, 16), torch.tensor(ptr), torch.tensor(idx), 32, 48)


def test_a_damaged_weight_is_refused():
    weight = BlockWeight.from_dense(torch.randn(40, 40), (16, 16))
    with pytest.raises(ValueError, match="not the transpose"):
        dataclasses.replace(weight, map_t=weight.map_t.flip(0)).validate()
    with pytest.raises(ValueError, match="past the edges"):
        dataclasses.replace(weight, values=torch.ones_like(weight.values)).validate()
    with pytest.raises(ValueError, match="expected torch.int32"):
        dataclasses.replace(weight, idx=weight.idx.long())
    with pytest.raises(ValueError, match="expected"):
        dataclasses.replace(weight, outputs=400)


def test_dense_is_differentiable():
    weight = BlockWeight.from_dense(torch.randn(40, 40), (16, 16), 0.5)
    live = dataclasses.replace(weight, values=weight.values.clone().requires_grad_())
    x, grad = torch.randn(3, 40), torch.randn(3, 40)
    (through,) = torch.autograd.grad(linear(x, live.dense()), live.values, grad)
    (direct,) = torch.autograd.grad(block_linear(x, live), live.values, grad)
    torch.testing.assert_close(through, direct)


def test_a_weight_moves_to_another_dtype():
    weight = BlockWeight.from_dense(torch.randn(40, 40), (16, 16), 0.5).to(torch.bfloat16)
    assert weight.values.dtype == torch.bfloat16 and weight.idx.dtype == torch.int32


def layer(keep=0.4, bias=True):
    torch.manual_seed(0)
    return BlockSparseLinear.from_linear(nn.Linear(70, 50, bias=bias), (16, 16), keep)


def test_a_full_layer_is_the_dense_one():
    dense = nn.Linear(70, 50)
    x = torch.randn(2, 3, 70)
    torch.testing.assert_close(BlockSparseLinear.from_linear(dense, (32, 32))(x), dense(x))
    assert "density=100.0%" in repr(BlockSparseLinear.from_linear(dense, (32, 32)))


def test_a_layer_trains_and_stays_sparse():
    model = nn.Sequential(layer(), nn.ReLU(), nn.Linear(50, 1))
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    x = torch.randn(64, 70)
    target = x[:, :3].sum(-1, keepdim=True)
    losses = []
    for _ in range(40):
        loss = (model(x) - target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    model[0].weight.validate()


def test_a_state_goes_through_safetensors(tmp_path):
    saved = layer(0.4)
    save_file(saved.state_dict(), tmp_path / "layer.safetensors")
    state = load_file(tmp_path / "layer.safetensors")
    assert set(state) == {"values", "bias", "ptr", "idx"}
    fresh = BlockSparseLinear.empty(70, 50, (16, 16))
    fresh.load_state_dict(state)
    x = torch.randn(4, 70)
    assert torch.equal(fresh(x), saved(x))
    state["values"].zero_()
    assert torch.equal(fresh(x), saved(x))
    fresh.weight.validate()


def test_a_damaged_state_is_refused():
    saved = layer(0.4)
    state = saved.state_dict()
    with pytest.raises(ValueError, match="unsorted|duplicate"):
        BlockSparseLinear.empty(70, 50, (16, 16)).load_state_dict(state | {"idx": state["idx"].flip(0)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        BlockSparseLinear.empty(70, 50, (32, 32)).load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        BlockSparseLinear.empty(70, 50, (16, 16)).load_state_dict({"values": state["values"]})


def test_a_layer_without_bias_and_in_bf16():
    plain = layer(0.4, bias=False).to(torch.bfloat16)
    assert plain.ptr.dtype == torch.int32 and set(plain.state_dict()) == {"values", "ptr", "idx"}
    assert plain(torch.randn(3, 70, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_compiles_whole_and_exports_with_a_free_batch():
    made = layer()
    x = torch.randn(4, 70, requires_grad=True)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager", dynamic=True)
    wanted = [x, *made.parameters()]
    for one, two in zip(
        torch.autograd.grad(made(x).square().sum(), wanted),
        torch.autograd.grad(compiled(x).square().sum(), wanted),
        strict=True,
    ):
        assert torch.equal(one, two)
    exported = torch.export.export(
        made, (x.detach(),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}, strict=False
    )
    assert torch.equal(exported.module()(torch.ones(7, 70)), made(torch.ones(7, 70)))

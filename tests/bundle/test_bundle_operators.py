"""What a graph may call: everything torch.export emits for real code, and nothing that does more than compute."""

import math

import pytest
import torch
import torch.nn.functional as F
from bundle_cases import capture, same
from torch import nn
from torch.export import Dim

from surgery.bundle import load, save
from surgery.bundle.operators import PYTHON_OPERATORS, find_operator
from surgery.diagnostics import BundleError

REFUSED = [
    "aten.save.default",
    "aten.from_file.default",
    "aten.from_file.out",
    "aten.warn.default",
    "aten.manual_seed.default",
    "aten.backward.default",
    "aten._backward.default",
    "aten.set_.source_Tensor",
    "aten.set_data.default",
    "aten.resize_.default",
    "aten.resize_as_.default",
    "aten._resize_output_.default",
    "aten.as_strided_.default",
    "aten.record_stream.default",
    "aten.pin_memory.default",
    "aten._pin_memory.default",
    "aten._print.default",
    "aten.requires_grad_.default",
    "aten.add.out",
    "aten.sparse_coo_tensor.size",
    "aten.sparse_csr_tensor.crow_col_value",
    "aten._sparse_coo_tensor_unsafe.default",
    "aten._nested_view_from_buffer.default",
    "aten.fbgemm_linear_fp16_weight.default",
    "aten.quantized_lstm.input",
    "aten.mkldnn_linear.default",
    "aten._cudnn_rnn.default",
    "aten._foreach_add.List",
    "aten._fused_adam_.default",
    "aten._cufft_set_plan_cache_max_size.default",
    "aten.native_layer_norm_backward.default",
    "aten.gelu_backward.default",
    "aten.ctc_loss.IntList",
    "aten.segment_reduce.default",
    "aten.rename.default",
    "aten.__class__.default",
    "aten.nothing.default",
    "aten.linear.nothing",
    "aten.linear",
    "aten.linear.default.default",
    "aten..default",
    "prim.device.default",
    "quantized.add.default",
    "surgery.__class__.default",
    "surgery.__init__.default",
    "surgery.nothing.default",
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "operator.attrgetter",
    "operator.methodcaller",
    "operator.setitem",
    "operator.call",
    "operator.itemgetter",
    "torch.load",
    "torch.save",
    "torch.ops.aten.linear.default",
    "torch.hub.load",
    "inductor.nothing.default",
    "higher_order.cond.default",
]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    with pytest.raises(BundleError) as caught:
        find_operator(name, "node `x`")
    fault = caught.value.diagnostics[0]
    assert fault.code == "S707" and "node `x`" in fault.message and fault.help


def test_no_admitted_operator_takes_what_no_file_can_describe():
    """Storages, streams and script objects have no JSON; generators are admitted only as None."""
    names = {name[6:] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    admitted = []
    for name in names:
        base, _, overload = name.partition(".")
        try:
            admitted.append(find_operator(f"aten.{base}.{overload or 'default'}", ""))
        except BundleError:
            continue
    kinds = {str(argument.real_type) for operator in admitted for argument in operator._schema.arguments}
    assert 500 < len(admitted) < len(names)
    assert not any(word in kind for kind in kinds for word in ("Storage", "Stream", "torch.classes", "Any"))
    assert not any(word in str(operator) for operator in admitted for word in ("file", "resize", "backward", "sparse_"))


@torch.library.custom_op("surgery::double_for_tests", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


double.register_fake(torch.empty_like)


def test_operators_of_surgery_are_admitted(tmp_path):
    class Doubles(nn.Module):
        def forward(self, x):
            return torch.ops.surgery.double_for_tests(x) + 1

    graph = capture(Doubles(), torch.ones(2, 3))
    loaded = load(save(tmp_path / "b", graph, manifest={}))
    assert same(loaded(torch.ones(5, 3)), graph(torch.ones(5, 3)))


def lengths(x):
    n, m = x.shape
    return (
        x.view(n, m // 2, 2).sum(), x[:, : m % 5 + 1], x * (n / 2), x * (m**-0.5), torch.zeros(m**2),
        x[: math.ceil(n / 4)], x[: math.floor(n * 0.5) + 1], x[: round(n * 0.5) + 1], x[-(n // 2) :], x.roll(-m, 1),
        torch.zeros(torch.sym_max(n, m)), torch.zeros(torch.sym_min(n, 2)), x * torch.sym_ite(n > 4, 2, 3),
        x * torch.sym_float(n), torch.sym_not(n > 100), torch.zeros(n | 1), torch.zeros(n << 1), torch.zeros((n & 6) + 1),
        n <= m, n - 1, x.numel() - n, x[: int(n * 0.7) + 1],
    )  # fmt: skip


def tensors(x):
    y = x.clone()
    y[:, 0] = 0
    y.add_(1).masked_fill_(y > 1, float("-inf"))
    picture = x[None, None]
    return (
        y, x.to(torch.bfloat16), x.type_as(x), torch.full((2,), float("nan")), torch.div(x, 3, rounding_mode="floor"),
        torch.einsum("ij,kj->ik", x, x), F.gelu(x, approximate="tanh"), torch.linalg.norm(x, ord="fro"), x[..., None, ::2],
        x[[0, 1]], x[x > 0], F.pad(x, (0, x.shape[0]), value=1.5), torch.meshgrid(x[0], x[1], indexing="ij"),
        F.interpolate(picture, scale_factor=2, mode="bilinear"), F.adaptive_avg_pool2d(picture, (2, 2)), x.topk(2),
        torch.fft.rfft(x).abs(), x.std(), x.unique(), x.new_zeros(x.size()), x.cumsum(0), x.softmax(1), x.to("cpu"),
    )  # fmt: skip


@pytest.mark.parametrize("function", [lengths, tensors])
def test_what_export_emits_is_admitted(tmp_path, function):
    class Calls(nn.Module):
        def forward(self, x):
            return function(x)

    sizes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    x = torch.randn(6, 8)
    with torch.no_grad():
        graph = torch.export.export(Calls().eval(), (x,), dynamic_shapes=sizes, strict=False).module(check_guards=False)
    loaded = load(save(tmp_path / "b", graph, manifest={}))
    for shape in [(6, 8), (7, 10)]:
        x = torch.randn(*shape)
        assert same(loaded(x), graph(x))


def test_layers_of_torch_are_admitted(tmp_path):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
            self.conv, self.norm, self.group = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
            self.recurrent = nn.LSTM(8, 4, batch_first=True)

        def forward(self, x):
            return self.recurrent(self.encoder(x))[0], self.group(self.norm(self.conv(x[:, None]))).relu()

    graph = capture(Layers(), torch.randn(2, 5, 8))
    loaded = load(save(tmp_path / "b", graph, manifest={}))
    x = torch.randn(3, 5, 8)
    assert same(loaded(x), graph(x))


class _Autocast(nn.Module):
    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return x @ x.transpose(1, 2)


class _Branch(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


class _Imaginary(nn.Module):
    def forward(self, x):
        return (x * 2j).real


UNSTORABLE = {"autocast": _Autocast(), "cond": _Branch(), "complex constant": _Imaginary()}


@pytest.mark.parametrize("name", UNSTORABLE)
def test_what_has_no_place_in_a_bundle_is_refused_when_saving(tmp_path, name):
    graph = capture(UNSTORABLE[name], torch.randn(2, 3, 4))
    with pytest.raises(BundleError) as caught:
        save(tmp_path / "b", graph, manifest={})
    assert caught.value.diagnostics[0].code == "S713" and caught.value.diagnostics[0].help
    assert not list(tmp_path.iterdir())


def test_the_table_of_python_operators_is_closed():
    assert len(PYTHON_OPERATORS) == 31
    assert all(callable(row.function) and 1 <= row.least <= row.most <= 3 for row in PYTHON_OPERATORS.values())

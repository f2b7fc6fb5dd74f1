"""Fused attention written out computes what it computed: masks, groups, lengths, dtypes, queries that see nothing."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from surgery.anatomy import inspect
from surgery.anatomy.attention_form import AttentionForm, Obstacle, forms_of
from surgery.passes.runner import run_passes
from surgery.passes.write_out_attention import WriteOutAttention
from surgery.verify.outputs import tensors_of

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}
STRANGERS = {
    "LlamaForCausalLM": ("LlamaConfig", SIZES | {"num_key_value_heads": 2}),
    "BertForMaskedLM": ("BertConfig", SIZES),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": 50},
    ),
    "Gemma2ForCausalLM": ("Gemma2Config", SIZES | {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}),
}
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Of the largest output: the fused call takes its sums in another order, and keeps bfloat16 weights elsewhere."""


class Bare(nn.Module):
    """One attention, called as `options` and `mask` say."""

    def __init__(self, kv_heads: int = 4, mask: str = "", **options):
        super().__init__()
        self.kv_heads, self.mask, self.options = kv_heads, mask, options
        self.q, self.kv, self.o = nn.Linear(32, 32), nn.Linear(32, 16 * kv_heads), nn.Linear(32, 32)

    def forward(self, x):
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, 4, 8).transpose(1, 2)
        k, v = self.kv(x).view(batch, length, 2, self.kv_heads, 8).permute(2, 0, 3, 1, 4).unbind(0)
        places = torch.arange(length)
        seen = (places[:, None] >= places) & (places[:, None] != 2)
        masks = {"bool": seen, "added": torch.zeros(length, length).masked_fill(~seen, float("-inf")).to(x.dtype)}
        out = scaled_dot_product_attention(q, k, v, masks.get(self.mask), **self.options)
        return self.o(out.transpose(1, 2).reshape(batch, length, 32))


BARE = {
    "plain": Bare(),
    "causal": Bare(is_causal=True),
    "grouped": Bare(kv_heads=2, is_causal=True, enable_gqa=True),
    "scaled": Bare(scale=1.7),
    "a query that sees nothing": Bare(mask="bool"),
    "and by an added mask": Bare(mask="added"),
}


def stranger(name: str, dtype: torch.dtype) -> tuple[nn.Module, dict]:
    config, sizes = STRANGERS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes, pad_token_id=0, use_cache=False)).eval()
    tokens = torch.randint(1, 50, (2, 9))
    mask = torch.ones_like(tokens)
    mask[0, -3:] = 0
    more = {"decoder_input_ids": tokens} if name.startswith("T5") else {}
    return model.to(dtype), {"input_ids": tokens, "attention_mask": mask} | more


def written_out(anatomy):
    forms = [form for site in anatomy.of_kind("attention") for form in forms_of(anatomy.graph_module, site)]
    assert all(isinstance(form, AttentionForm) and form.heads == (4,) for form in forms)
    calls = tuple(form.product.name for form in forms if form.fused)
    return run_passes(anatomy.graph_module, [WriteOutAttention("clause", "place", calls)])


def first(outputs):
    return tensors_of(outputs)[0].float()


CASES = [(name, torch.float32) for name in (*STRANGERS, *BARE)]
CASES += [(name, torch.bfloat16) for name in ("LlamaForCausalLM", *BARE)]


@pytest.mark.parametrize("name, dtype", CASES)
def test_the_same_numbers(name, dtype):
    if name in STRANGERS:
        model, inputs = stranger(name, dtype)
    else:
        model, inputs = BARE[name].to(dtype), {"x": torch.randn(2, 9, 32).to(dtype)}
    anatomy = inspect(model, inputs)
    graph_module = written_out(anatomy)
    forms = [form for site in anatomy.of_kind("attention") for form in forms_of(graph_module, site)]
    assert forms and not any(isinstance(form, Obstacle) or form.fused for form in forms)
    shorter = {key: each[:, :7] for key, each in inputs.items()}
    for given in (inputs, shorter):
        ours, theirs = (first(module(**given)) for module in (graph_module, anatomy.graph_module))
        assert (ours - theirs).abs().max() <= TOLERANCES[dtype] * theirs.abs().max()


def test_what_cannot_be_told_apart_is_said():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.o = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x):
            heads = self.q(x).view(2, 9, 4, 8).transpose(1, 2).reshape(8, 9, 8)
            out = torch.bmm(torch.bmm(heads, heads.transpose(1, 2)).softmax(-1), heads)
            return self.o(out.view(2, 4, 9, 8).transpose(1, 2).reshape(2, 9, 32))

    anatomy = inspect(Folded(), {"x": torch.randn(2, 9, 32)})
    (found,) = [form for site in anatomy.of_kind("attention") for form in forms_of(anatomy.graph_module, site)]
    assert isinstance(found, Obstacle) and "heads" in found.reason

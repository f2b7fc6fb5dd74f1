"""Models of other people's code read well: blocks fold, masks are named, a saved graph reads like the captured one."""

import pytest
import torch

from surgery.anatomy import capture
from surgery.bundle import load, save
from surgery.inspection import code, diff

IDS = {"input_ids": torch.zeros(2, 8, dtype=torch.long)}


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(n_layer=3, n_embd=16, n_head=2, vocab_size=20, n_positions=16, use_cache=False)
    ), IDS


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=3, vocab_size=20, use_cache=False, **sizes)), IDS


def dit():
    from diffusers import DiTTransformer2DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "sample_size": 4}
    model = DiTTransformer2DModel(num_layers=3, patch_size=2, num_embeds_ada_norm=5, norm_num_groups=4, **sizes)
    return model, {
        "hidden_states": torch.randn(2, 4, 4, 4),
        "timestep": torch.tensor([1, 2]),
        "class_labels": torch.tensor([1, 2]),
    }


READS = [
    (gpt2, ["# transformer.h.1 … transformer.h.2: same as transformer.h.0", "sdpa(h0_q, h0_k, h0_v, mask"]),
    (llama, ["# model.layers.1 … model.layers.2: same as model.layers.0", "h0_gate_proj = linear("]),
    (
        dit,
        [
            "# transformer_blocks.1 … transformer_blocks.2: same as transformer_blocks.0",
            "h0_shift, h0_scale, h0_gate, h0_shift_2, h0_scale_2, h0_gate_2 = h0_linear.chunk(6, 1)",
        ],
    ),
]


@pytest.mark.parametrize(("make", "lines"), READS, ids=["gpt2", "llama", "dit"])
def test_it_reads_well_and_survives_a_bundle(make, lines, tmp_path):
    model, inputs = make()
    captured = capture(model, inputs)
    text = code(captured)
    assert all(line in text for line in lines)
    loaded = load(save(tmp_path / "bundle", captured, manifest={}))
    assert code(loaded) == text
    assert diff(captured, loaded).identical

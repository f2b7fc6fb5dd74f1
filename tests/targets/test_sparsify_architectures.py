"""`sparsify attention` on architectures with habits of their own: proven, saved, loaded to the same bits, at other sizes."""

import re

import pytest
import torch
from torch.utils import _pytree as pytree

import surgery

transformers = pytest.importorskip("transformers")

COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
SMALL = COMMON | {"intermediate_size": 48, "max_position_embeddings": 64}
LATENT = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "n_routed_experts": 4, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1,
}  # fmt: skip
RELATIVE = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
WINDOWS = {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 6}
LOCAL = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8, "global_attn_every_n_layers": 2}
GATES, BLOCKS = "gates steps=2 batch=8 tolerance=20%", "blocks block=4"
PREDICTED = "topk score=predicted normalize=all"
CASES = {
    "values narrower than keys": ("DeepseekV3", "ForCausalLM", SMALL | LATENT, (GATES, BLOCKS, PREDICTED)),
    "one head of keys": ("Falcon", "ForCausalLM", COMMON | {"multi_query": True}, (PREDICTED, BLOCKS)),
    "softcap and windows": ("Gemma2", "ForCausalLM", SMALL | WINDOWS, (GATES, BLOCKS)),
    "rotary of a quarter": ("GPTNeoX", "ForCausalLM", SMALL, (GATES, PREDICTED)),
    "relative scores": ("DebertaV2", "ForMaskedLM", SMALL | RELATIVE, (GATES, BLOCKS)),
    "local layers": ("ModernBert", "ForMaskedLM", SMALL | LOCAL, (BLOCKS, "topk")),
}


@pytest.mark.parametrize(("name", "via"), [(name, via) for name, case in CASES.items() for via in case[3]])
def test_it_is_proven_and_loads_again(name, via, tmp_path):
    kind, head, settings, _ = CASES[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind + head)(getattr(transformers, f"{kind}Config")(**settings, use_cache=False)).eval()
    with torch.no_grad():  # of weights as small as a fresh model's all scores are alike
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else None
    rows = {"input_ids": torch.randint(3, 60, (16, 24), generator=torch.Generator().manual_seed(1))}
    example = {"input_ids": rows["input_ids"][:2]}
    spec = f"sparsify attention 50% via {via}"
    result = surgery.compile(model, spec, example_inputs=example, data=rows, calibration=12, timing=False, controls=False)
    assert result.report["parity"] and all(row["holds"] for row in result.report["parity"])
    loaded = surgery.load(result.save(tmp_path / "out"))
    for inputs in (example, {"input_ids": rows["input_ids"][:3, :17]}):
        with torch.no_grad():
            ours, theirs = (pytree.tree_leaves(module(**inputs))[0] for module in (result.module, loaded))
        assert torch.equal(ours, theirs) and ours.shape[:2] == inputs["input_ids"].shape
    if head == "ForCausalLM" and "topk" not in via and kind != "DeepseekV3":  # experts gather tokens: no cache
        written = [loaded.generate(example["input_ids"][:, :6], max_new_tokens=8, use_cache=use) for use in (True, False)]
        assert torch.equal(*written)


def test_what_the_refusal_of_cross_attention_says_to_write_is_all_it_takes():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, use_cache=False)).eval()
    rows = {"input_ids": torch.randint(3, 60, (16, 24)), "decoder_input_ids": torch.randint(3, 60, (16, 12))}
    given = {"example_inputs": {name: value[:2] for name, value in rows.items()}, "timing": False, "controls": False}
    with pytest.raises(surgery.SurgeryError, match="S331.*EncDecAttention") as caught:
        surgery.compile(model, "sparsify attention 40% via topk", **given)
    (written,) = re.findall("leave it out: `(.*)`", caught.value.diagnostics[0].help)
    result = surgery.compile(model, f"sparsify 40% {written} via topk", **given)
    assert len(result.report["actions"][0]["sites"]) == 4

"""Decoders nobody here wrote, cut unevenly, saved and loaded: with a cache they write what the whole graph writes."""

import subprocess
import sys
from functools import cache

import pytest
import torch
from torch import nn

import surgery
from surgery.diagnostics import RefusalError, SurgeryError
from surgery.generation import decoder_of, generate

transformers = pytest.importorskip("transformers")
WORDS = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96} | WORDS
GROUPED = SIZES | {"num_key_value_heads": 2}
MODELS = {
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 48} | WORDS),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED),
    "Qwen3ForCausalLM": ("Qwen3Config", GROUPED | {"head_dim": 16}),
    "MistralForCausalLM": ("MistralConfig", GROUPED | {"sliding_window": 4}),
}
UNEVEN = "prune 25% of mlp channels in layer 1; prune 50% of attention heads in layer 0"
CASES = [(name, torch.float32) for name in MODELS] + [("LlamaForCausalLM", torch.bfloat16)]


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict]:
    config, sizes = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    inputs = {"input_ids": torch.randint(3, 100, (2, 8)), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    return model.to(dtype), inputs | {"use_cache": False}


@cache
def cut(name: str, dtype: torch.dtype = torch.float32):
    model, inputs = build(name, dtype)
    return surgery.compile(model, UNEVEN, example_inputs=inputs, timing=False, controls=False)


def prompts() -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts, two of them padded on the left."""
    tokens = torch.randint(3, 100, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 6, dtype=torch.int64)
    mask[1, :2], mask[2, :3] = 0, 0
    return tokens, mask


@pytest.mark.parametrize("name, dtype", CASES)
def test_with_a_cache_as_without(name, dtype, tmp_path):
    cut(name, dtype).save(tmp_path / "out")
    module = surgery.load(tmp_path / "out")
    tokens, mask = prompts()
    new = 32 if name == "LlamaForCausalLM" else 10
    options = {"attention_mask": mask, "max_new_tokens": new, "eos_token_id": []}
    text = module.generate(tokens, use_cache=True, **options)
    assert text.shape == (3, 6 + new) and torch.equal(text[:, :6], tokens)
    if dtype is torch.float32:
        assert torch.equal(text, module.generate(tokens, use_cache=False, **options))
    longer = torch.cat([mask, torch.ones(3, new - 1, dtype=torch.int64)], 1)
    with torch.no_grad():
        logits = module(input_ids=text[:, :-1], attention_mask=longer, use_cache=False).logits[:, 5:].float()
    written = logits.gather(-1, text[:, 6:, None])[..., 0]
    rounding = {torch.float32: 1e-4, torch.bfloat16: 2**-6}[dtype]  # of the best; rows are summed in another order
    assert bool((written >= logits.amax(-1) - rounding * logits.abs().amax(-1)).all())
    room = [tuple(tensor.shape) for _, tensor in kept(module, tokens, mask)]
    heads = {"LlamaForCausalLM": (1, 2), "Qwen3ForCausalLM": (1, 2), "MistralForCausalLM": (1, 2)}.get(name, (2, 4))
    assert room == [(3, heads[0], 40, 16)] * 2 + [(3, heads[1], 40, 16)] * 2


def kept(module, tokens, mask) -> list:
    text = decoder_of(module).start({"attention_mask": mask}, 3, 40)
    text.read(tokens)
    return list(text.memory.kept.values())


def test_an_encoder_decoder_runs_its_encoder_once():
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(3, 100, (2, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids.clone(), "use_cache": False}
    module = surgery.inspect(model, inputs).graph_module
    tokens, mask = prompts()
    options = {"attention_mask": mask, "decoder_start_token_id": 0, "max_new_tokens": 12, "temperature": 2.0}
    cached = generate(module, tokens, use_cache=True, **options)
    assert cached.shape == (3, 13) and torch.equal(cached, generate(module, tokens, use_cache=False, **options))
    assert len(set(cached.flatten().tolist())) > 3
    step = [str(node.target) for node in decoder_of(module).step.module.graph.nodes if node.op == "get_attr"]
    assert step and not any("encoder.block" in name.replace("decoder", "") for name in step)
    assert not any("EncDecAttention.k" in name or "EncDecAttention.v" in name for name in step)


WRITTEN_OUT = {
    "BloomForCausalLM": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4} | WORDS),
    "Gemma2ForCausalLM": ("Gemma2Config", GROUPED | {"head_dim": 16, "sliding_window": 4}),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_attention_written_out(name):
    """softmax(Q Kᵀ) V with ALiBi, and with a cap on its scores and a window."""
    config, sizes = WRITTEN_OUT[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(3, 100, (2, 8))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    module = surgery.inspect(model, given).graph_module
    assert sum("scaled_dot_product" in str(node.target) for node in module.graph.nodes) == 0
    tokens, mask = prompts()
    options = {"attention_mask": mask, "max_new_tokens": 8, "temperature": 1.0}
    cached = generate(module, tokens, use_cache=True, **options)
    assert torch.equal(cached, generate(module, tokens, use_cache=False, **options))


def test_uncut_it_writes_what_the_library_writes():
    model, inputs = build("MistralForCausalLM")
    module = surgery.inspect(model, inputs).graph_module
    tokens = prompts()[0]
    theirs = model.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=12)
    assert torch.equal(generate(module, tokens, max_new_tokens=12, eos_token_id=2, pad_token_id=0), theirs)


@pytest.fixture(scope="module")
def llama():
    return cut("LlamaForCausalLM").module


def test_drawn_tokens_follow_the_seed_and_the_limits(llama):
    tokens = prompts()[0]
    options = {"max_new_tokens": 10, "temperature": 2.0}
    one = generate(llama, tokens, seed=1, **options)
    assert torch.equal(one, generate(llama, tokens, seed=1, **options))
    assert torch.equal(one, generate(llama, tokens, seed=1, use_cache=False, **options))
    assert not torch.equal(one, generate(llama, tokens, seed=2, **options))
    likeliest = generate(llama, tokens, max_new_tokens=10)
    assert not torch.equal(one, likeliest)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}):
        assert torch.equal(generate(llama, tokens, seed=1, **options, **narrow), likeliest)


def test_a_row_that_ended_is_padded_and_all_ended_stops(llama):
    tokens = prompts()[0]
    text = generate(llama, tokens, max_new_tokens=8)
    first = text[0, 6].item()
    ended = generate(llama, tokens, max_new_tokens=8, eos_token_id=first, pad_token_id=99)
    assert ended[0].tolist() == [*tokens[0].tolist(), first, *[99] * (ended.shape[1] - 7)]
    assert generate(llama, tokens[:1], max_new_tokens=8, eos_token_id=[first]).shape == (1, 7)


def test_other_rows_do_not_change_a_text(llama):
    tokens, mask = prompts()
    together = generate(llama, tokens, attention_mask=mask, max_new_tokens=8)
    alone = generate(llama, tokens[2:, 3:], max_new_tokens=8)
    assert torch.equal(together[2, 6:], alone[0, 3:])


class Pooled(nn.Module):
    """A causal attention, and a mean over the whole text."""

    def __init__(self, pool: bool, causal: bool = True):
        super().__init__()
        self.table, self.qkv, self.head = nn.Embedding(20, 16), nn.Linear(16, 48), nn.Linear(16, 20)
        self.pool, self.causal = pool, causal

    def forward(self, ids):
        x = self.table(ids)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + mixed.transpose(1, 2).flatten(2)
        return self.head(x + x.mean(1, keepdim=True) if self.pool else x)


def captured(module: nn.Module):
    return surgery.inspect(module.eval(), (torch.randint(0, 20, (2, 6)),)).graph_module


def test_a_flag_instead_of_a_mask():
    torch.manual_seed(0)
    graph = captured(Pooled(pool=False))
    tokens = torch.randint(0, 20, (2, 3))
    cached = generate(graph, tokens, max_new_tokens=9, use_cache=True)
    assert torch.equal(cached, generate(graph, tokens, max_new_tokens=9, use_cache=False))


def bert() -> torch.fx.GraphModule:
    model = transformers.BertModel(transformers.BertConfig(**SIZES)).eval()
    ids = torch.randint(3, 100, (2, 8))
    return surgery.inspect(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}).graph_module


REFUSED = [
    (lambda: captured(Pooled(pool=True)), "from the rows of others"),
    (lambda: captured(Pooled(pool=False, causal=False)), "looks at later tokens"),
    (bert, "looks at later tokens"),
]


@pytest.mark.parametrize("make, told", REFUSED)
def test_what_is_no_decoder_is_refused_with_the_place(make, told):
    graph = make()
    with pytest.raises(RefusalError, match=told) as caught:
        generate(graph, torch.randint(3, 20, (2, 3)), use_cache=True)
    assert caught.value.diagnostics[0].code == "S721"
    with pytest.warns(UserWarning, match=told):
        generate(graph, torch.randint(3, 20, (2, 3)), max_new_tokens=1)


def padded_right() -> torch.Tensor:
    mask = torch.ones(3, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    return mask


WRONG = [
    ({"attention_mask": padded_right()}, "ends with padding"),
    ({"attention_mask": torch.ones(3, 5)}, r"\[3, 5\]"),
    ({"labels": torch.ones(3, 6)}, "takes no `labels`"),
    ({"top_k": 3}, "temperature"),
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
]


@pytest.mark.parametrize("options, told", WRONG)
def test_arguments_that_do_not_fit(llama, options, told):
    with pytest.raises(SurgeryError, match=told) as caught:
        generate(llama, prompts()[0], **options)
    assert caught.value.diagnostics[0].code == "S722"


def test_positions_that_end():
    with pytest.raises(SurgeryError, match="length 60: its table of positions has 48 rows"):
        generate(cut("GPT2LMHeadModel").module, prompts()[0], max_new_tokens=54)


ELSEWHERE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "diffusers", "tokenizers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch, surgery
module = surgery.load(sys.argv[1])
print(module.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=8, use_cache=True).tolist())
assert not {"transformers", "diffusers"} & set(sys.modules)
"""


def test_it_generates_where_transformers_is_absent(tmp_path):
    result = cut("LlamaForCausalLM")
    result.save(tmp_path / "out")
    expected = generate(result.module, torch.tensor([[5, 6, 7]]), max_new_tokens=8, use_cache=False)
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() == str(expected.tolist()), run.stderr

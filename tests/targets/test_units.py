"""Heads and channels of models nobody here wrote: masked == compacted, saved, reloaded, trainable."""

import pytest
import torch

import surgery
from surgery.anatomy.capture import with_batch
from surgery.diagnostics import RefusalError

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
TEXT = SIZES | {"vocab_size": 100}
GROUPED = TEXT | {"num_key_value_heads": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}
SIX = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
MODELS = {
    "GPT2LMHeadModel": ("GPT2Config", GPT),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED),
    "Qwen3ForCausalLM": ("Qwen3Config", GROUPED | {"head_dim": 16}),
    "MistralForCausalLM": ("MistralConfig", GROUPED | {"sliding_window": 4}),
    "Phi3ForCausalLM": ("Phi3Config", GROUPED | {"pad_token_id": 0}),
    "GPTNeoXForCausalLM": ("GPTNeoXConfig", TEXT),
    "BertModel": ("BertConfig", TEXT),
    "ViTModel": ("ViTConfig", SIZES | {"image_size": 32, "patch_size": 8}),
    "T5ForConditionalGeneration": ("T5Config", SIX),
}
FUSED = {"LlamaForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "Phi3ForCausalLM"}
"""Heads go in pairs here: half of the four, one group of two."""


def build(name: str) -> tuple[torch.nn.Module, dict]:
    config, sizes = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    if name == "ViTModel":
        return model, {"pixel_values": torch.randn(2, 3, 32, 32)}
    inputs = {"input_ids": torch.randint(0, 100, (2, 8))}
    if name == "T5ForConditionalGeneration":
        return model, inputs | {"decoder_input_ids": torch.randint(0, 100, (2, 8)), "use_cache": False}
    return model, inputs if name == "BertModel" else inputs | {"use_cache": False}


def cut(name: str, what: str, dtype: torch.dtype = torch.float32):
    model, inputs = build(name)
    inputs = {
        key: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in inputs.items()
    }
    share = "50%" if what == "attention heads" and name in FUSED else "25%"
    result = surgery.compile(
        model.to(dtype), f"prune {share} of {what}", example_inputs=inputs, timing=False, controls=False
    )
    return model, inputs, result


@pytest.mark.parametrize("what", ["mlp channels", "attention heads"])
@pytest.mark.parametrize("name", MODELS)
def test_masked_equals_compacted(name, what):
    model, _, result = cut(name, what)
    assert all(row["holds"] for row in result.report["parity"])
    assert {row["batch"] for row in result.report["parity"]} == {2, 5}
    size = result.report["size"]["parameters"]
    assert size["before"] == sum(p.numel() for p in model.parameters()) and size["after"] < size["before"]
    saved = sum(action.parameters for action in result.plan.actions)
    assert size["before"] - size["after"] == saved
    for action in result.plan.actions:
        key = "width" if what == "mlp channels" else "heads"
        share = 0.5 if what == "attention heads" and name in FUSED else 0.75
        assert action.after[key] == share * action.before[key]


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM"])
def test_in_bfloat16(name):
    for what in ("mlp channels", "attention heads"):
        assert all(row["holds"] for row in cut(name, what, torch.bfloat16)[2].report["parity"])


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration"])
def test_saved_reloaded_and_trained_at_other_lengths(name, tmp_path):
    _, inputs, result = cut(name, "attention heads")
    result.save(tmp_path / "out")
    loaded = surgery.load(tmp_path / "out")
    for batch, length in ((1, 8), (3, 5)):
        fed = {
            key: value[:, :length] if torch.is_tensor(value) else value
            for key, value in with_batch(inputs, size=batch).items()
        }
        assert torch.equal(loaded(**fed).logits, result.module(**fed).logits)
    loaded(**inputs).logits.sum().backward()
    gone = [name for name, parameter in loaded.named_parameters() if parameter.grad is None]
    assert not gone


def test_the_least_goes_and_the_most_as_a_control():
    model, inputs = build("BertModel")
    with torch.no_grad():
        model.encoder.layer[0].intermediate.dense.weight[:24].mul_(1e-3)
        model.encoder.layer[0].output.dense.weight[:, 72:].mul_(1e3)
    for side, kept in (("tail", range(24, 96)), ("head", range(72))):
        spec = f"prune {side} 25% of mlp channels in layer 0"
        result = surgery.compile(model, spec, example_inputs=inputs, timing=False, controls=False)
        assert result.report["actions"][0]["choice"]["kept"] == list(kept)


def test_uneven_heads_go_in_whole_groups_and_say_so():
    model, inputs = build("LlamaForCausalLM")
    plan = surgery.plan(model, "prune 3 of attention heads", example_inputs=inputs)
    assert plan.actions[0].after == {"heads": 2, "kv_heads": 1}
    assert "whole groups" in plan.actions[0].notes[0] and "2 removed" in plan.actions[0].notes[1]


class Returned(torch.nn.Module):
    """Hidden channels that leave the model as well."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)

    def forward(self, x):
        made = self.up(x)
        return self.down(torch.relu(made)), made


class Computed(torch.nn.Module):
    """The layer that reads the channels scales its weight on the way."""

    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x + torch.nn.functional.linear(torch.relu(self.up(x)), self.down.weight * self.gain)


class Product(torch.nn.Module):
    """Heads joined by `@` with a parameter [heads · head dim, width]."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(32, 96), torch.nn.Parameter(torch.randn(32, 32) / 6)

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        heads = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x + heads.transpose(1, 2).reshape(batch, length, width) @ self.out


def test_heads_joined_by_a_parameter():
    inputs = (torch.randn(2, 5, 32),)
    spec = "prune 25% of attention heads"
    result = surgery.compile(Product().eval(), spec, example_inputs=inputs, timing=False, controls=False)
    assert all(row["holds"] for row in result.report["parity"])
    assert result.module.out.shape == (24, 32)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "ViTModel"])
def test_the_plan_saves_the_flops_that_are_counted(name):
    _, _, result = cut(name, "mlp channels")
    size = result.report["size"]["flops"]
    assert size["before"] - size["after"] == sum(action.flops for action in result.plan.actions)


REFUSED = [
    (Computed, "prune 25% of mlp channels", "S317", "is computed, not stored"),
    (Returned, "prune 25% of mlp channels", "S317", "output of the model"),
    (Returned, "prune 32 of mlp channels", "S313", "leaves none"),
    (Returned, "prune 25% of mlp channels compensate=refit", "S318", "refit"),
]


@pytest.mark.parametrize("model, spec, code, told", REFUSED)
def test_refused_with_the_place(model, spec, code, told):
    with pytest.raises(RefusalError) as caught:
        surgery.plan(model().eval(), spec, example_inputs=(torch.randn(2, 3, 8),))
    one = caught.value.diagnostics[0]
    assert one.code == code
    assert told in " ".join([one.message, *one.notes])

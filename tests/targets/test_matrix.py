"""Every architecture × heads and channels × fp32 and bf16: the right sites, compacted == masked at two batch sizes and
two lengths, saved and loaded again bit by bit, and a gradient wherever there was one.

A line of the table per architecture; each is captured once per dtype. Those that nobody named are cut in fp32 alone.
"""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from surgery import bundle
from surgery.anatomy import Anatomy, inspect
from surgery.anatomy.capture import call, with_batch
from surgery.diagnostics import SurgeryError
from surgery.models import LoadedModel
from surgery.session.parity import TOLERANCES, shortened
from surgery.session.prepare import prepare
from surgery.session.rewrite import choose, context_of, references, rewrite
from surgery.verify.outputs import tensors_of

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 48}
TEXT = SIZES | SPECIAL | {"vocab_size": 50, "max_position_embeddings": 32}
GROUPED = TEXT | {"num_key_value_heads": 4, "head_dim": 4}
OLD = SPECIAL | {"n_embd": 32, "n_layer": 2, "n_head": 8, "vocab_size": 50, "n_positions": 32}
T5 = {"d_model": 32, "d_kv": 4, "d_ff": 48, "num_layers": 2, "num_heads": 8, "vocab_size": 50} | SPECIAL
PAIR = SPECIAL | {"d_model": 32, "vocab_size": 50, "max_position_embeddings": 32} | {
    name: number
    for side in ("encoder", "decoder")
    for name, number in ((f"{side}_layers", 1), (f"{side}_attention_heads", 8), (f"{side}_ffn_dim", 48))
}
PATCHES = SIZES | {"image_size": 16, "patch_size": 8}
EAGER = {"attn_implementation": "eager"}
DIT = {
    "num_attention_heads": 8,
    "attention_head_dim": 4,
    "in_channels": 3,
    "out_channels": 6,
    "num_layers": 2,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 10,
}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4}


def ids(length: int = 6) -> Tensor:
    return torch.arange(2 * length).reshape(2, length) + 3


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


IDS = {"input_ids": ids()}
CACHELESS = IDS | {"use_cache": False}
BOTH = CACHELESS | {"decoder_input_ids": ids(4)}
PIXELS = {"pixel_values": noise(2, 3, 16, 16)}
NOISE = {"hidden_states": noise(2, 3, 8, 8), "timestep": torch.tensor([900, 20]), "class_labels": torch.tensor([1, 7])}
SOUND = {"input_features": noise(2, 8, 16), "decoder_input_ids": ids(4), "use_cache": False}
CLIP = {"input_ids": ids(), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}


class Hand(nn.Module):
    """Written by hand: q, k and v head by head in one layer, softmax(QKᵀ)V spelt out, relative positions, sandwich
    norms, a gate of its own, and a head tied to the table."""

    def __init__(self):
        super().__init__()
        self.table, self.near = nn.Embedding(50, 32), nn.Parameter(torch.zeros(8, 63))
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(*sizes) for name, sizes in self.layers.items()}) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))

    layers = {"qkv": (32, 96), "out": (32, 32), "gate": (32, 48), "up": (32, 48), "down": (48, 32)}

    def forward(self, input_ids):
        x = self.table(input_ids)
        places = torch.arange(input_ids.shape[1], device=x.device)
        bias = self.near[:, places[:, None] - places[None] + 31]
        for number, block in enumerate(self.blocks):
            first, second = self.norms[2 * number : 2 * number + 2]
            q, k, v = block["qkv"](first(x)).unflatten(-1, (8, 12)).transpose(1, 2).chunk(3, -1)
            mixed = ((q @ k.mT) / 2 + bias).softmax(-1) @ v
            x = x + second(block["out"](mixed.transpose(1, 2).flatten(2)))
            x = x + block["down"](F.silu(block["gate"](x)) * block["up"](x))
        return F.linear(x, self.table.weight)


# name: model, settings, inputs, attention (sites, heads, key heads), mlp (sites, channels, gated)
TABLE: dict[str, tuple[Any, dict, dict, tuple, tuple]] = {
    "gpt2": ("GPT2LMHeadModel", OLD, CACHELESS, (2, 8, 8), (2, 128, False)),
    "gpt2 eager": ("GPT2Model", OLD | EAGER, CACHELESS, (2, 8, 8), (2, 128, False)),
    "llama": ("LlamaForCausalLM", GROUPED, CACHELESS, (2, 8, 4), (2, 48, True)),
    "llama eager": ("LlamaModel", GROUPED | EAGER, CACHELESS, (2, 8, 4), (2, 48, True)),
    "qwen2 tied": ("Qwen2ForCausalLM", GROUPED | {"tie_word_embeddings": True}, CACHELESS, (2, 8, 4), (2, 48, True)),
    "qwen3": ("Qwen3ForCausalLM", GROUPED, CACHELESS, (2, 8, 4), (2, 48, True)),
    "mistral": ("MistralForCausalLM", GROUPED | {"sliding_window": 3}, CACHELESS, (2, 8, 4), (2, 48, True)),
    "bert": ("BertForMaskedLM", TEXT, IDS, (2, 8, 8), (2, 48, False)),
    "vit": ("ViTForImageClassification", PATCHES, PIXELS, (2, 8, 8), (2, 48, False)),
    "t5": ("T5ForConditionalGeneration", T5, BOTH, (6, 8, 8), (4, 48, False)),
    "t5 gated": ("T5EncoderModel", T5 | {"feed_forward_proj": "gated-gelu"}, IDS, (2, 8, 8), (2, 48, True)),
    "dit": (diffusers.DiTTransformer2DModel, DIT, NOISE, (2, 8, 8), (2, 128, False)),
    "hand": (Hand, {}, IDS, (2, 8, 8), (2, 48, True)),
    "neox": ("GPTNeoXForCausalLM", TEXT, CACHELESS, (2, 8, 8), (2, 48, False)),
    "phi3": ("Phi3ForCausalLM", GROUPED, CACHELESS, (2, 8, 4), (2, 48, True)),
    "falcon": ("FalconForCausalLM", TEXT, CACHELESS, (2, 8, 1), (2, 128, False)),
    "bloom": ("BloomForCausalLM", TEXT | {"n_layer": 2, "n_head": 8}, CACHELESS, (2, 8, 8), (2, 128, False)),
}
OTHERS: dict[str, tuple[Any, dict, dict, tuple, tuple]] = {
    "opt": ("OPTForCausalLM", TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32}, CACHELESS, (2, 8, 8), (2, 48, False)),
    "phi": ("PhiForCausalLM", TEXT, CACHELESS, (2, 8, 8), (2, 48, False)),
    "gemma": ("GemmaForCausalLM", GROUPED, CACHELESS, (2, 8, 4), (2, 48, True)),
    "stablelm": ("StableLmForCausalLM", GROUPED, CACHELESS, (2, 8, 4), (2, 48, True)),
    "deberta": ("DebertaV2Model", TEXT | DISENTANGLED, IDS, (2, 8, 8), (2, 48, False)),
    "roberta": ("RobertaModel", TEXT, IDS, (2, 8, 8), (2, 48, False)),
    "deit": ("DeiTModel", PATCHES, PIXELS, (2, 8, 8), (2, 48, False)),
    "clip": ("CLIPTextModel", TEXT, CLIP, (2, 8, 8), (2, 48, False)),
    "whisper": (
        "WhisperModel",
        PAIR | {"num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16, "decoder_start_token_id": 1},
        SOUND,
        (3, 8, 8),
        (2, 48, False),
    ),
    "segformer": (
        "SegformerModel",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "num_attention_heads": [8, 8],
            "mlp_ratios": [2, 2],
        },
        PIXELS,
        (2, 8, 8),
        (2, None, False),
    ),
    "xlnet": (
        "XLNetModel",
        {"d_model": 32, "n_layer": 2, "n_head": 8, "d_inner": 48, "vocab_size": 50},
        IDS | {"use_mems": False},
        (2, 8, 8),
        (2, 48, False),
    ),
    "mpt": ("MptModel", OLD | {"d_model": 32, "n_heads": 8, "n_layers": 2}, CACHELESS, (2, 8, 8), (2, 128, False)),
    "mixtral": (
        "MixtralForCausalLM",
        GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
        CACHELESS,
        (2, 8, 4),
        (0, None, False),
    ),
    "olmo2": ("Olmo2ForCausalLM", GROUPED, CACHELESS, (2, 8, 4), (2, 48, True)),
    "beit": ("BeitModel", PATCHES | {"use_relative_position_bias": True}, PIXELS, (2, 8, 8), (2, 48, False)),
}
ALL = TABLE | OTHERS
UNIT = ("heads", "width")
WHAT = {"heads": "prune 25% of attention heads", "channels": "prune 25% of mlp channels"}
BATCHES = (1, 3)


def cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    def floating(held: Any) -> bool:
        return isinstance(held, Tensor) and held.is_floating_point()

    return {name: held.to(dtype) if floating(held) else held for name, held in inputs.items()}


@cache
def model_of(name: str, dtype: torch.dtype) -> LoadedModel:
    """Weights large enough that every part of the model counts."""
    kind, settings, inputs, *_ = ALL[name]
    torch.manual_seed(0)
    if isinstance(kind, str):
        made = getattr(transformers, kind)
        model = made(made.config_class(**settings))
    else:
        model = kind(**settings)
    for parameter in model.parameters():
        if parameter.dim() > 1 or name == "dit":
            nn.init.normal_(parameter, std=0.2)
    return LoadedModel(name, model.eval().to(dtype), cast(inputs, dtype))


@cache
def anatomy_of(name: str, dtype: torch.dtype) -> Anatomy:
    model = model_of(name, dtype)
    return inspect(model.module, model.example_inputs)


@cache
def cut(name: str, what: str, dtype: torch.dtype) -> tuple[GraphModule, GraphModule, Any]:
    """The compact graph, the masked one, and the plan's actions."""
    prepared = prepare(WHAT[what], model_of(name, dtype), anatomy=anatomy_of(name, dtype))
    context = context_of(prepared)
    choices = choose(prepared, context)
    actions = [work.action(prepared.anatomy.graph_module) for work in prepared.works]
    ((_, compact, masked),) = references(prepared, choices, rewrite(prepared, choices, context), context)
    return compact, masked, actions


def fed(name: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The inputs at two batch sizes, each at two lengths where the length is free."""
    anatomy, inputs = anatomy_of(name, dtype), model_of(name, dtype).example_inputs
    short = shortened(anatomy.graph_module, inputs)
    return [with_batch(each, size=size) for each in (inputs, short) if each is not None for size in BATCHES]


def differ(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference over the largest value."""
    apart = [(one.double() - two.double()).abs().max() for one, two in zip(ours, theirs, strict=True)]
    return float(max(apart) / max(each.double().abs().max() for each in theirs))


def gradients(module: nn.Module, inputs: dict[str, Any]) -> dict[str, Tensor | None]:
    """Of the sum of all outputs' squares, by parameter."""
    module.zero_grad()
    made = [each for each in tensors_of(call(module, inputs)) if each.requires_grad]
    sum(each.float().square().sum() for each in made).backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def outputs(module: Any, inputs: dict[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [each for each in tensors_of(call(module, inputs)) if each.is_floating_point() and each.numel()]


REFUSED = {
    ("olmo2", "heads"): "`model.layers.0.self_attn.q_norm` mixes them",
    ("xlnet", "heads"): "is not made by layers alone",
    ("mixtral", "channels"): "in 4 experts",
}
"""A norm over all heads together has no part that is one head's; weights with an axis for heads are no layer's;
channels of experts are not cut yet."""
CUT = [(name, what) for name in ALL for what in WHAT if (name, what) not in REFUSED]
CELLS = [(*pair, torch.float32) for pair in CUT] + [(*pair, torch.bfloat16) for pair in CUT if pair[0] in TABLE]


@pytest.mark.parametrize("name", ALL)
def test_sites_heads_and_widths(name):
    anatomy = anatomy_of(name, torch.float32)
    *_, (sites, heads, kv_heads), (feeds, width, gated) = ALL[name]
    attention, mlp = anatomy.of_kind("attention"), anatomy.of_kind("mlp")
    assert (len(attention), len(mlp)) == (sites, feeds)
    assert {(site.heads, site.kv_heads) for site in attention} == {(heads, kv_heads)}
    assert {site.gated for site in mlp} == ({gated} if feeds else set())
    assert width is None or {site.width for site in mlp} == {width}


@pytest.mark.parametrize(("name", "what", "dtype"), CELLS, ids=str)
def test_compacted_equals_masked_and_is_loaded_as_it_was_saved(name, what, dtype, tmp_path):
    compact, masked, actions = cut(name, what, dtype)
    assert {4 * action.after[key] for action in actions for key in UNIT if key in action.before} == {
        3 * action.before[key] for action in actions for key in UNIT if key in action.before
    }
    bundle.save(tmp_path / "out", compact, manifest={})
    loaded = bundle.load(tmp_path / "out")
    for inputs in fed(name, dtype):
        ours, truth = outputs(compact, inputs), outputs(masked, inputs)
        assert differ(ours, truth) <= TOLERANCES[dtype][0]
        assert all(map(torch.equal, outputs(loaded, inputs), ours))
    if dtype == torch.float32:
        assert differ(outputs(anatomy_of(name, dtype).graph_module, inputs), truth) > 1e-3, "the cut changes nothing"


@pytest.mark.parametrize(("name", "what"), CUT)
def test_a_gradient_wherever_there_was_one(name, what):
    inputs = model_of(name, torch.float32).example_inputs
    before = gradients(anatomy_of(name, torch.float32).graph_module, inputs)
    after = gradients(cut(name, what, torch.float32)[0], inputs)
    for key, gradient in after.items():
        if before[key] is not None and before[key].any():
            assert gradient is not None and gradient.isfinite().all() and gradient.any(), key


@pytest.mark.parametrize(("name", "what"), REFUSED)
def test_what_cannot_be_cut_is_refused_with_the_place(name, what):
    with pytest.raises(SurgeryError) as caught:
        cut(name, what, torch.float32)
    (told,) = caught.value.diagnostics
    assert REFUSED[name, what] in " ".join([told.message, *told.notes])

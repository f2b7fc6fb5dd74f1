"""Layers of models nobody here wrote go: the graph equals the model that was built without them."""

import copy
from functools import cache

import pytest
import strangers
import torch
from torch import nn

import surgery
from surgery import bundle
from surgery.anatomy import Anatomy, inspect
from surgery.anatomy.capture import call, with_batch
from surgery.anatomy.selectors import resolve
from surgery.check import check
from surgery.diagnostics import SurgeryError
from surgery.passes.runner import run_passes
from surgery.session.parity import TOLERANCES, parity
from surgery.targets.context import Calibration, Context
from surgery.verify.outputs import tensors_of
from surgery.verify.size import size

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SIZES | {"vocab_size": 60, "max_position_embeddings": 32}
ENDS = {"bos_token_id": 1, "eos_token_id": 1}
GPT = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 60, "n_positions": 32} | ENDS
OPT = TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0} | ENDS
SIX = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 60}
DIT = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 3, "out_channels": 6, "num_layers": 3}
DIT |= {"sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 10}
IDS = {"input_ids": torch.arange(20).reshape(2, 10)}
CACHELESS = IDS | {"use_cache": False}
PIXELS = {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))}
DENOISING = {
    "hidden_states": torch.randn(2, 3, 8, 8),
    "timestep": torch.tensor([9, 2]),
    "class_labels": torch.tensor([1, 7]),
}
MODELS = {
    "GPT2LMHeadModel": ("GPT2Config", GPT, CACHELESS, "transformer.h"),
    "LlamaForCausalLM": ("LlamaConfig", TEXT | {"num_key_value_heads": 2}, CACHELESS, "model.layers"),
    "OPTForCausalLM": ("OPTConfig", OPT, CACHELESS, "model.decoder.layers"),
    "BertForMaskedLM": ("BertConfig", TEXT, IDS, "bert.encoder.layer"),
    "ViTModel": ("ViTConfig", SIZES | {"image_size": 16, "patch_size": 8}, PIXELS, "layers"),
    "T5ForConditionalGeneration": (
        "T5Config",
        SIX,
        CACHELESS | {"decoder_input_ids": torch.arange(12).reshape(2, 6)},
        "encoder.block",
    ),
    "DiTTransformer2DModel": ("", DIT, DENOISING, "transformer_blocks"),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict]:
    config, sizes, inputs, _ = MODELS[name]
    torch.manual_seed(0)
    library = transformers if config else diffusers
    model = getattr(library, name)(getattr(library, config)(**sizes)) if config else getattr(library, name)(**sizes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    fed = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    return model.eval().to(dtype), fed


@cache
def captured(name: str, dtype: torch.dtype) -> tuple[nn.Module, dict, Anatomy]:
    model, inputs = build(name, dtype)
    return model, inputs, inspect(model, inputs)


def cut(anatomy: Anatomy, spec: str, context: Context | None = None):
    """The work of a spec, its choice, the graph without the layers and the slow truth."""
    (work,), context, graph_module = strangers.works_of(anatomy, spec), context or Context(), anatomy.graph_module
    choice = work.choose(anatomy, context)
    both = [run_passes(graph_module, make(graph_module, choice, context)) for make in (work.passes, work.reference)]
    return work, choice, *both


def without(model: nn.Module, path: str, gone: set[int]) -> nn.Module:
    """The model with another list of layers: what its own code makes of them."""
    stripped = copy.deepcopy(model)
    owner, _, leaf = path.rpartition(".")
    layers = stripped.get_submodule(path)
    kept = nn.ModuleList(layer for place, layer in enumerate(layers) if place not in gone)
    setattr(stripped.get_submodule(owner), leaf, kept)
    return stripped


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


def resized(inputs: dict, batch: int, length: int) -> dict:
    def shorter(value):
        return value[:, :length] if torch.is_tensor(value) and value.dtype == torch.int64 and value.dim() > 1 else value

    return {name: shorter(value) for name, value in with_batch(inputs, size=batch).items()}


HALF = ("LlamaForCausalLM", "BertForMaskedLM")
CASES = [*((name, torch.float32) for name in MODELS), *((name, torch.bfloat16) for name in HALF)]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_equals_the_model_without_the_layers(name, dtype):
    model, inputs, anatomy = captured(name, dtype)
    gone = {1} if name.startswith("T5") else {1, 2}
    work, choice, compact, masked = cut(anatomy, f"prune layers {sorted(gone)}")
    stripped = without(model, MODELS[name][3], gone)
    depth = len(anatomy.of_kind("block"))
    assert choice.keep.tolist() == [number for number in range(depth) if number not in gone]
    for batch, length in ((2, 10), (3, 5)):
        fed = resized(inputs, batch, length)
        with torch.no_grad():
            ours, theirs = tensors_of(call(compact, fed)), tensors_of(call(stripped, fed))
            full, whole = tensors_of(call(masked, fed)), tensors_of(call(model, fed))
        for one, other, slow, original in zip(ours, theirs, full, whole, strict=True):
            # Sums in another order, by the code for one length: a few units in the last place, layer after layer.
            assert apart(one, other) < TOLERANCES[dtype][0] < apart(one, original)
            assert torch.equal(one, slow)
    action = work.action(anatomy.graph_module)
    left = sum(parameter.numel() for parameter in compact.parameters())
    assert left == sum(parameter.numel() for parameter in stripped.parameters())
    assert action.parameters == sum(parameter.numel() for parameter in model.parameters()) - left
    assert (action.before, action.after) == ({"layers": depth}, {"layers": depth - len(gone)})


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "ViTModel"])
def test_the_plan_saves_the_flops_that_are_counted(name):
    model, inputs, anatomy = captured(name, torch.float32)
    work, _, compact, _ = cut(anatomy, "prune layers 1..2")
    saved = size(model, inputs, samples=2).flops - size(compact, inputs, samples=2).flops
    assert saved == work.action(anatomy.graph_module).flops > 0


def test_what_other_layers_read_stays():
    model, inputs, anatomy = captured("T5ForConditionalGeneration", torch.float32)
    _, _, compact, masked = cut(anatomy, "prune layers [0, 2]")
    names = {name for name, _ in compact.named_parameters()}
    kept = [f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight" for stack in ("encoder", "decoder")]
    assert set(kept) == {name for name in names if ".block.0." in name}
    assert all(row["holds"] for row in parity(compact, masked, inputs))


def test_layers_that_share_their_weights_are_layers_all_the_same():
    torch.manual_seed(0)
    model = transformers.AlbertModel(transformers.AlbertConfig(embedding_size=16, **TEXT)).eval()
    anatomy = inspect(model, IDS)
    assert [site.layer for site in anatomy.of_kind("block")] == [0, 1, 2]
    work, _, compact, _ = cut(anatomy, "prune layer 2")
    assert work.action(anatomy.graph_module).parameters == 0
    model.config.num_hidden_layers = model.encoder.config.num_hidden_layers = 2
    with torch.no_grad():
        torch.testing.assert_close(compact(**IDS)[0], model(**IDS).last_hidden_state)


def test_with_channels_from_spec_to_report():
    model, inputs = build("LlamaForCausalLM")
    spec = "prune 2 layers by magnitude\nprune 25% of mlp channels\n"
    result = surgery.compile(model, spec, example_inputs=inputs, timing=False, controls=False)
    assert all(row["holds"] for row in result.report["parity"])
    assert len(result.report["actions"][0]["choice"]["kept"]) == 1
    assert any("FLOPs of heads and channels" in note for note in result.report["notes"])
    sizes = result.report["size"]["parameters"]
    assert result.plan.document()["size"]["parameters"] == sizes
    kept = result.report["actions"][0]["choice"]["kept"]
    assert result.report["actions"][0]["sites"] == [f"model.layers.{n}" for n in range(3) if n not in kept]
    assert sizes["after"] == sum(parameter.numel() for parameter in result.module.parameters()) < 0.7 * sizes["before"]


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "T5ForConditionalGeneration", "DiTTransformer2DModel"])
def test_saved_reloaded_and_trained(name, tmp_path):
    _, inputs, anatomy = captured(name, torch.float32)
    _, _, compact, _ = cut(anatomy, "prune layer 1")
    bundle.save(tmp_path / "out", compact, manifest={})
    stored = surgery.load(tmp_path / "out")
    assert {name for name, _ in stored.named_parameters()} == {name for name, _ in compact.named_parameters()}
    for batch, length in ((1, 10), (3, 5)):
        fed = resized(inputs, batch, length)
        for one, other in zip(tensors_of(call(stored, fed)), tensors_of(call(compact, fed)), strict=True):
            assert torch.equal(one, other)
    sum(output.float().sum() for output in tensors_of(call(stored, inputs))).backward()
    assert all(parameter.grad is not None for parameter in stored.parameters())


def calibration(rows: int = 6, padded: int = 0) -> Calibration:
    ids = torch.randint(0, 60, (rows, 8), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[:, 8 - padded :] = 0
    return Calibration({"input_ids": ids, "attention_mask": mask}, {"input_ids": None, "attention_mask": None})


@cache
def masked_model() -> tuple[nn.Module, Anatomy]:
    """A BERT whose third layer turns no token: it writes next to nothing."""
    model, inputs = build("BertForMaskedLM")
    with torch.no_grad():
        for part in ("attention.output", "output"):
            owner = model.get_submodule(f"bert.encoder.layer.1.{part}")
            owner.dense.weight.mul_(1e-4), owner.dense.bias.zero_()
            owner.LayerNorm.weight.fill_(1), owner.LayerNorm.bias.zero_()
    return model, inspect(model, inputs | {"attention_mask": torch.ones(2, 10, dtype=torch.int64)})


def test_similarity_is_the_block_influence_of_its_definition():
    model, anatomy = masked_model()
    for padded in (0, 3):
        data = calibration(padded=padded)
        (work,) = strangers.works_of(anatomy, "prune 1 layers by similarity")
        with torch.no_grad():
            states = model.bert(**data.inputs, output_hidden_states=True).hidden_states
        real = data.inputs["attention_mask"].bool()
        cosines = [torch.cosine_similarity(a, b, dim=-1)[real] for a, b in zip(states, states[1:], strict=False)]
        expected = torch.stack([1 - cosine.double().mean() for cosine in cosines])
        found = work._scores(anatomy.graph_module, "similarity", Context(calibration=data))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
        assert work.choose(anatomy, Context(calibration=data)).keep.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("spec", "gone"),
    [
        ("prune 1 layers by magnitude", [1]),
        ("prune 40% of layers", [1]),
        ("prune 1 layers in layers 1..2 except layer 1 by similarity", None),
        ("prune 2 layers by angular", None),
    ],
)
def test_the_least_goes(spec, gone):
    _, anatomy = masked_model()
    _, choice, compact, _ = cut(anatomy, spec, Context(calibration=calibration()))
    left = sorted(set(range(3)) - set(choice.keep.tolist()))
    if gone is not None:
        assert left == gone
    elif "angular" in spec:
        assert left[1] == left[0] + 1 and 1 in left
    else:
        assert left == [2]


@pytest.mark.parametrize("by", ["angular", "magnitude"])
def test_a_share_that_is_searched_for_takes_nothing_yet(by):
    _, anatomy = masked_model()
    (operation,) = check(f"prune auto of layers by {by}; require loss <= 2x").operations
    (work,) = operation.plan(anatomy, resolve(operation.target, anatomy))
    assert work.action(anatomy.graph_module).parameters == 0 and "auto" in work.notes[0]
    choice = work.choose(anatomy, Context(calibration=calibration()))
    assert choice.keep.tolist() == [0, 1, 2] and work.passes(anatomy.graph_module, choice, Context()) == []


def test_head_reverses_and_random_follows_its_seed():
    _, anatomy = masked_model()
    with_data = Context(calibration=calibration())
    assert 1 in cut(anatomy, "prune head 2 layers by similarity", with_data)[1].keep.tolist()
    kept = [cut(anatomy, f"prune random 2 layers seed={seed}")[1].keep.tolist() for seed in (0, 0, 1, 2, 3)]
    assert kept[0] == kept[1] and len({tuple(keep) for keep in kept}) > 1
    (work,) = strangers.works_of(anatomy, "prune 1 layers")
    assert [name for name, _ in work.controls()][1:] == ["random 0", "random 1", "random 2"]
    assert "no data to calibrate on" in work.choose(anatomy, Context()).notes[0]


@cache
def stranger(cls: type[nn.Module]) -> Anatomy:
    model = strangers.make(cls)
    return inspect(model, strangers.inputs_of(model))


class Skipping(strangers.Token):
    """As in U-ViT: the first block's output comes back in front of the last."""

    def build(self, width):
        self.blocks.append(strangers.Block(width, attention=True))
        self.back = nn.Linear(2 * width, width)

    def forward(self, x, t, y):
        x = states = self.tokens(x, self.condition(t, y))
        for place, block in enumerate(self.blocks):
            if place == 2:
                x = self.back(torch.cat([x, states], -1))
            x = x + block.attend(block.norm(x))
            x = x + block.feed(block.norm(x))
            states = x if place == 0 else states
        return self.head(x[:, 1:])


class Inside(strangers.Token):
    """What the second block has attended to is an output too."""

    def forward(self, x, t, y):
        x = self.tokens(x, self.condition(t, y))
        for block in self.blocks:
            attended = block.attend(block.norm(x))
            x = x + attended
            x = x + block.feed(block.norm(x))
        return self.head(x[:, 1:]), attended


class Growing(strangers.Token):
    """Each block concatenates what it has found to the tokens."""

    def forward(self, x, t, y):
        x = self.tokens(x, self.condition(t, y))
        for block in self.blocks:
            x = torch.cat([x, block.feed(block.norm(block.attend(x)))], 1)
        return self.head(x[:, 1:])


REFUSED = [
    (Skipping, "prune layer 0", "S319", ["its output skips ahead", "`blocks.1`", "`cat`"]),
    (Inside, "prune layer 1", "S319", ["the model's output reads `linear`", "blocks.1.proj"]),
    (Growing, "prune layer 0", "S319", ["no sum of its input"]),
    (strangers.Token, "prune 2 layers", "S313", ["leaves none"]),
    (strangers.Token, "prune 100% of layers", "S313", ["remove at most 1"]),
    (strangers.Token, "prune layers 0..1", "S313", ["leaves none"]),
    (strangers.Token, "prune 1 layers by effect", "S318", ["`by=effect` is not for layers"]),
    (strangers.Token, "prune 1 layers by similarity", "S323", ["needs data"]),
    (strangers.Token, "prune layer 7", "S304", ["no layer 7"]),
]


@pytest.mark.parametrize(("cls", "spec", "code", "told"), REFUSED, ids=[f"{c.__name__}: {s}" for c, s, _, _ in REFUSED])
def test_refused_with_both_places(cls, spec, code, told):
    with pytest.raises(SurgeryError) as caught:
        cut(stranger(cls), spec)
    (fault,) = caught.value.diagnostics
    assert fault.code == code
    for part in told:
        assert part in " ".join([fault.message, *fault.notes, fault.help])


def test_blocks_whose_additions_stand_outside_of_them():
    anatomy = stranger(Skipping)
    _, _, compact, masked = cut(anatomy, "prune layer 1")
    assert all(row["holds"] for row in parity(compact, masked, anatomy.inputs))
    assert not [name for name, _ in compact.named_parameters() if name.startswith("blocks.1.")]


def test_a_stack_never_loses_its_last_layer():
    _, _, anatomy = captured("T5ForConditionalGeneration", torch.float32)
    _, choice, _, _ = cut(anatomy, "prune 2 layers by magnitude")
    kept = choice.keep.tolist()
    assert len(set(kept) & {0, 1}) == len(set(kept) & {2, 3}) == 1
    (operation,) = check("prune layers 2..3").operations
    with pytest.raises(SurgeryError, match="decoder.block"):
        operation.plan(anatomy, resolve(operation.target, anatomy))


class Filled(nn.Module):
    """A layer that fills an empty tensor part by part, through views of it that nothing else reads."""

    def __init__(self, width: int):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        half, made = x.shape[-1] // 2, y.new_empty(y.shape)
        made[..., :half], made[..., half:] = y[..., half:], y[..., :half]
        return x + made


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.layers, self.last = nn.Linear(6, 8), nn.ModuleList(Filled(8) for _ in range(3)), nn.Linear(8, 6)

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_what_writes_through_a_view_stays_with_the_layers_that_stay(gone):
    torch.manual_seed(0)
    model, inputs = Stack(), {"x": torch.randn(2, 5, 6)}
    result = surgery.compile(model, f"prune layers [{gone}]", example_inputs=inputs, timing=False, controls=False)
    model.layers[gone] = nn.Identity()
    fresh = torch.randn(3, 7, 6)
    assert torch.allclose(result.module(x=fresh), model(fresh), atol=1e-6)

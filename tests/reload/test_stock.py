"""Cut models in the hands of transformers: `from_pretrained` where a config says it all, refused with the reason where
none does, and `generate()` of its own either way."""

import json
from functools import cache

import pytest
import torch
from torch import nn

import surgery
from surgery.anatomy import inspect
from surgery.diagnostics import BundleError
from surgery.reload.names import Gap, gaps, rename, renumbered
from surgery.reload.stock import stock_of

transformers = pytest.importorskip("transformers")
WORDS = {"vocab_size": 100, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96} | WORDS
GROUPED = SIZES | {"num_key_value_heads": 2}
SIX = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
CONFIGS = {
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 48} | WORDS),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED),
    "Qwen3ForCausalLM": ("Qwen3Config", GROUPED | {"head_dim": 16, "num_hidden_layers": 3}),
    "BertModel": ("BertConfig", SIZES),
    "T5ForConditionalGeneration": ("T5Config", SIX),
}
CHANNELS, HEADS = "prune 25% of mlp channels", "prune 50% of attention heads"
ONE_LAYER = f"{CHANNELS} in layer 1"
SHORTER = {"num_hidden_layers": (3, 2), "layer_types": (["full_attention"] * 3, ["full_attention"] * 2)}
FEWER_HEADS = {"num_attention_heads": (4, 2), "num_key_value_heads": (2, 1)}


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict]:
    config, sizes = CONFIGS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    ids = torch.randint(3, 100, (2, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    if name == "BertModel":
        del inputs["use_cache"]
    if name == "T5ForConditionalGeneration":
        inputs["decoder_input_ids"] = ids.flip(1)
    return model.to(dtype), inputs


@cache
def cut(name: str, spec: str, dtype: torch.dtype = torch.float32):
    model, inputs = build(name, dtype)
    return inputs, surgery.compile(model, spec, example_inputs=inputs, timing=False, controls=False)


TAKEN = [
    ("GPT2LMHeadModel", CHANNELS, {"n_inner": (None, 192)}, torch.float32),
    ("LlamaForCausalLM", f"{CHANNELS}; {HEADS}", FEWER_HEADS | {"intermediate_size": (96, 72)}, torch.bfloat16),
    ("Qwen3ForCausalLM", f"{HEADS}; prune layers [1]", FEWER_HEADS | SHORTER, torch.float32),
    ("BertModel", CHANNELS, {"intermediate_size": (96, 72)}, torch.float32),
]


@pytest.mark.parametrize("name, spec, changed, dtype", TAKEN)
def test_the_library_reads_the_bundle_itself(name, spec, changed, dtype, tmp_path):
    inputs, result = cut(name, spec, dtype)
    assert result.stock.holds and dict(result.stock.changed) == changed
    assert any("from_pretrained` reads" in note for note in result.report["notes"])
    folder = result.save(tmp_path / "out")
    assert [file.name for file in folder.glob("*.safetensors")] == ["model.safetensors"]
    theirs, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"] and theirs.dtype == dtype
    longer = {key: torch.cat([value] * 2, 1) if torch.is_tensor(value) else value for key, value in inputs.items()}
    with torch.no_grad():
        ours = surgery.load(folder)(**longer)[0]
        # Weights mapped from a file lie in memory otherwise aligned, where kernels sum in another order.
        rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-6}[dtype] * float(ours.abs().max())
        assert torch.allclose(theirs.eval()(**longer)[0], ours, rtol=0, atol=rounding)
    auto = transformers.AutoConfig.from_pretrained(folder)
    assert {field: getattr(auto, field) for field in changed} == {field: pair[1] for field, pair in changed.items()}


REFUSED = [
    ("LlamaForCausalLM", ONE_LAYER, "widths differ from layer to layer"),
    ("BertModel", HEADS, "query.weight` is 32 wide instead of 64, and no field"),
    ("T5ForConditionalGeneration", HEADS, "d_kv 16 → 8: its outputs differ"),
]


@pytest.mark.parametrize("name, spec, told", REFUSED)
def test_where_no_config_says_it_the_reason_is_told(name, spec, told, tmp_path):
    _, result = cut(name, spec)
    assert not result.stock.holds and told in result.stock.why_not
    assert any("cannot read this model, `surgery.load` can" in note for note in result.report["notes"])
    folder = result.save(tmp_path / "out")
    assert json.loads((folder / "surgery.json").read_text())["source"]["stock"]["from_pretrained"] is False
    with pytest.raises((RuntimeError, OSError)):
        getattr(transformers, name).from_pretrained(folder)


def test_of_no_library_nothing_is_said():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    result = surgery.compile(model, CHANNELS, example_inputs=(torch.randn(2, 3, 8),), timing=False, controls=False)
    assert result.stock is None and not result.files and result.manifest["source"] is None


def test_gaps_are_closed_in_names_and_owners():
    model, inputs = build("LlamaForCausalLM")
    graph = surgery.inspect(model, inputs).graph_module
    left = [name for name in model.state_dict() if "layers.0." not in name]
    found = gaps(model.state_dict(), left)
    assert found == (Gap("model.layers", 2, (1,)),)
    assert renumbered("model.layers.1.mlp", found) == "model.layers.0.mlp"
    assert renumbered("model.layers", found) == "model.layers" and renumbered("layers.1", found) == "layers.1"
    for node in graph.graph.nodes:  # the last block twice, as if the first were no more
        if node.op == "get_attr" and "layers.0." in node.target:
            node.target = node.target.replace("layers.0.", "layers.1.")
    graph.recompile()
    renamed = rename(graph, found)
    assert {node.target for node in renamed.graph.nodes if "layers." in str(node.target)} == {
        name.replace("layers.1.", "layers.0.") for name in left if "layers.1." in name
    }
    with torch.no_grad():
        assert torch.equal(renamed(**inputs).logits, graph(**inputs).logits)


PROMPT = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.mark.parametrize("name, spec", [("LlamaForCausalLM", ONE_LAYER), ("T5ForConditionalGeneration", HEADS)])
def test_the_librarys_own_generate_drives_the_graph(name, spec, tmp_path):
    folder = cut(name, spec)[1].save(tmp_path / "out")
    model = surgery.load(folder, library="transformers")
    assert isinstance(model, transformers.GenerationMixin) and model.can_generate()
    start = {"decoder_start_token_id": 0} if model.config.is_encoder_decoder else {}
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 10, "do_sample": False, "eos_token_id": None} | start
    ours = surgery.load(folder).generate(PROMPT, attention_mask=mask, max_new_tokens=10, eos_token_id=[], **start)
    assert torch.equal(model.generate(PROMPT, **options), ours)
    beams = [model.generate(PROMPT, num_beams=3, use_cache=use_cache, **options) for use_cache in (True, False)]
    assert torch.equal(*beams)
    with pytest.raises(NotImplementedError, match="saved as a bundle"):
        model.save_pretrained(tmp_path / "elsewhere")


def test_another_library_is_refused(tmp_path):
    folder = cut("LlamaForCausalLM", ONE_LAYER)[1].save(tmp_path / "out")
    with pytest.raises(BundleError, match="no model of `diffusers`, but of `transformers`") as caught:
        surgery.load(folder, library="diffusers")
    assert caught.value.diagnostics[0].code == "S717"


def test_a_folder_of_theirs_becomes_a_bundle_that_their_pipelines_take(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: place for place, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(97))])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<s>"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "padding_side": "left"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **named).save_pretrained(tmp_path / "theirs")
    build("LlamaForCausalLM")[0].save_pretrained(tmp_path / "theirs")
    spec = f'model hf:"{tmp_path / "theirs"}"; {ONE_LAYER}'
    surgery.apply(spec, tmp_path / "out", timing=False, controls=False, pt2=True)
    there = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.pt2"} <= there
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["use_cache"] is True and str(tmp_path) not in json.dumps(config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    texts = ["w1 w2 w3", "w5"]
    model = surgery.load(tmp_path / "out", library="transformers")
    written = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)(
        texts, max_new_tokens=5, batch_size=2, do_sample=False
    )
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    mask = batch["attention_mask"]
    ours = surgery.load(tmp_path / "out").generate(batch["input_ids"], attention_mask=mask, max_new_tokens=5)
    for row, text, (found,) in zip(ours, texts, written, strict=True):
        told = found["generated_text"].removeprefix(text).split()
        assert told and told == tokenizer.decode(row, skip_special_tokens=True).split()[len(text.split()) :]


def test_a_configuration_with_an_infinity_is_read():
    """JSON has none: transformers writes `{"__float__": "Infinity"}`."""
    config = transformers.BambaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=20,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_n_groups=1,
        mamba_d_state=4,
        mamba_chunk_size=8,
        use_cache=False,
    )
    model = transformers.BambaForCausalLM(config).eval()
    inputs = {"input_ids": torch.randint(0, 20, (2, 6)), "use_cache": False}
    stock = stock_of(model, inspect(model, inputs).graph_module, inputs)
    assert stock is not None and not stock.why_not

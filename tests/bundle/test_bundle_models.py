"""Models of transformers and diffusers, reloaded where neither is installed, give the same bits at any batch size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bundle_cases import capture, contents, same
from safetensors.torch import save_file
from torch import Tensor, nn

from surgery.bundle import load, read_manifest, save

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

BATCHES = (1, 2, 5)
WORDS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}


def ids(batch: int) -> Tensor:
    return torch.randint(3, 50, (batch, 6), generator=torch.Generator().manual_seed(batch))


def mask(batch: int) -> Tensor:
    rows = torch.ones(batch, 6, dtype=torch.int64)
    rows[0, 4:] = 0
    return rows


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0]))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=4, n_positions=16, use_cache=False, **WORDS)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    config = transformers.LlamaConfig(num_key_value_heads=2, use_cache=False, **SMALL, **WORDS)
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
    return transformers.BertForSequenceClassification(config)


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(image_size=8, patch_size=4, **SMALL))


def t5() -> nn.Module:
    config = transformers.T5Config(
        d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=4, use_cache=False, vocab_size=50
    )
    return transformers.T5ForConditionalGeneration(config)


def dit() -> nn.Module:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=8, norm_num_groups=1,
        num_embeds_ada_norm=10,
    )  # fmt: skip


def dit_inputs(batch: int) -> dict[str, Tensor]:
    return {
        "hidden_states": floats(batch, 4, 8, 8),
        "timestep": torch.arange(batch) * 7,
        "class_labels": torch.arange(batch),
    }


MODELS = {
    "gpt2": (gpt2, lambda b: {"input_ids": ids(b)}),
    "llama": (llama, lambda b: {"input_ids": ids(b), "attention_mask": mask(b)}),
    "bert": (bert, lambda b: {"input_ids": ids(b), "attention_mask": mask(b)}),
    "vit": (vit, lambda b: {"pixel_values": floats(b, 3, 8, 8)}),
    "t5": (t5, lambda b: {"input_ids": ids(b), "decoder_input_ids": ids(b)}),
    "dit": (dit, dit_inputs),
}
CASES = [(name, torch.float32) for name in MODELS] + [(name, torch.bfloat16) for name in ("llama", "dit")]

ELSEWHERE = """
import json, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("transformers", "diffusers"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import torch
from safetensors.torch import load_file
from surgery.bundle import Output, load
for folder in sys.argv[1:]:
    module = load(folder)
    for batch in (1, 2, 5):
        data = load_file(f"{folder}.{batch}.safetensors")
        with torch.no_grad():
            found = module(**{key[3:]: data[key] for key in data if key.startswith("in.")})
        assert isinstance(found, Output), type(found)
        for name, value in found.items():
            expected = data["out." + name]
            assert value.dtype == expected.dtype and torch.equal(value, expected), (folder, batch, name)
assert not {"transformers", "diffusers"} & set(sys.modules)
print("same", len(sys.argv) - 1)
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value).removeprefix("torch."))
def test_a_model_reloads_bit_for_bit(shelf, name, dtype):
    torch.manual_seed(0)
    make, inputs_of = MODELS[name]
    model = make().to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)

    def given(batch: int) -> dict[str, Tensor]:
        return {key: value.to(dtype) if value.is_floating_point() else value for key, value in inputs_of(batch).items()}

    graph = capture(model, **given(2))
    folder = save(shelf / f"{name}-{dtype}", graph, manifest={"model": name})
    loaded = load(folder)
    for batch in BATCHES:
        with torch.no_grad():
            expected, found = graph(**given(batch)), loaded(**given(batch))
        assert type(found) is type(expected) and found.keys() == expected.keys() and same(found, expected)
        tensors = {f"in.{key}": value for key, value in given(batch).items()}
        tensors |= {f"out.{key}": value.clone() for key, value in found.items()}
        save_file(tensors, f"{folder}.{batch}.safetensors")
    ties = [row["tied"] for row in json.loads((folder / "graph.json").read_text())["tensors"].values() if "tied" in row]
    assert bool(ties) == (name in ("gpt2", "t5"))
    assert contents(save(shelf / f"{name}-{dtype}-again", loaded, manifest=read_manifest(folder))) == contents(folder)


def test_they_reload_where_their_libraries_are_absent(shelf):
    folders = [str(path) for path in sorted(shelf.iterdir()) if path.is_dir() and not path.name.endswith("again")]
    if len(folders) < len(CASES):
        pytest.skip("runs after the models were saved")
    run = subprocess.run([sys.executable, "-c", ELSEWHERE, *folders], capture_output=True, text=True, check=False)
    assert run.stdout == f"same {len(CASES)}\n", run.stderr

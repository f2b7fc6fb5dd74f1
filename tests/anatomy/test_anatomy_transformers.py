"""Attention, feed-forward layers and tables of transformers' models, by structure; and diffusers' copies of c."""

import pytest
import strangers
import torch

from surgery.anatomy import inspect
from surgery.anatomy.selectors import resolve
from surgery.check import check
from surgery.diagnostics import SurgeryError
from surgery.session.parity import parity
from surgery.targets.tied import tied

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 16}
GPT2 = {
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 50,
    "n_positions": 16,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
IDS = {"input_ids": torch.arange(10).reshape(2, 5)}
CACHELESS = IDS | {"use_cache": False}
PIXELS = {"pixel_values": torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))}
MODELS = {
    "GPT2": (GPT2, CACHELESS),
    "GPT2 eager": (GPT2 | {"attn_implementation": "eager"}, CACHELESS),
    "Llama": (TEXT | {"num_key_value_heads": 2}, CACHELESS),
    "Llama eager": (TEXT | {"num_key_value_heads": 2, "attn_implementation": "eager"}, CACHELESS),
    "Bert": (TEXT, IDS),
    "ViT": (SMALL | {"image_size": 8, "patch_size": 4, "num_channels": 1}, PIXELS),
}
# name: heads, key heads, head width, causal, hidden channels, gated, table roles
TOLD = {
    "GPT2": (2, 2, 8, True, 64, False, ["token", "position"]),
    "GPT2 eager": (2, 2, 8, True, 64, False, ["token", "position"]),
    "Llama": (4, 2, 4, True, 24, True, ["token"]),
    "Llama eager": (4, 2, 4, True, 24, True, ["token"]),
    "Bert": (4, 4, 4, False, 24, False, ["token", "segment", "position"]),
    "ViT": (4, 4, 4, False, 24, False, ["position"]),
}


@pytest.fixture(scope="module")
def anatomies():
    torch.manual_seed(0)
    found = {}
    for name, (settings, inputs) in MODELS.items():
        kind = name.split()[0]
        config = getattr(transformers, f"{kind}Config")(**settings)
        found[name] = inspect(getattr(transformers, f"{kind}Model")(config).eval(), inputs)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_sites_of_text_and_vision_models(name, anatomies):
    anatomy = anatomies[name]
    heads, kv_heads, head_dim, causal, width, gated, roles = TOLD[name]
    attention, mlps = anatomy.of_kind("attention"), anatomy.of_kind("mlp")
    assert [site.layer for site in attention] == [site.layer for site in mlps] == [0, 1]
    for site in attention:
        assert (site.heads, site.kv_heads, site.head_dim, site.causal) == (heads, kv_heads, head_dim, causal)
        assert len(site.projections) == (2 if "GPT2" in name else 4)
    assert {(site.width, site.gated, len(site.up)) for site in mlps} == {(width, gated, 2 if gated else 1)}
    assert [site.role for site in anatomy.of_kind("embedding")] == roles
    assert anatomy.of_kind("conditioning") == ()


@pytest.mark.parametrize("name", ["GPT2", "Bert", "ViT"])
def test_class_embeddings_of_them_are_none(name, anatomies):
    (operation,) = check("prune 66% of class embeddings").operations
    with pytest.raises(SurgeryError) as caught:
        resolve(operation.target, anatomies[name], name)
    (fault,) = caught.value.diagnostics
    count = len(TOLD[name][-1])
    assert fault.code == "S104" and fault.span.text == "class embeddings"
    assert fault.label == f"{name} has {count} embedding table{'s' * (count > 1)}"
    assert fault.notes[0].startswith(TOLD[name][-1][0]) and "none was found" in fault.notes[1]


@pytest.fixture(scope="module")
def dit():
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, out_channels=6, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = {
        "hidden_states": torch.randn(2, 3, 8, 8),
        "timestep": torch.tensor([900, 20]),
        "class_labels": torch.tensor([1, 7]),
    }
    return model, inputs


def test_diffusers_makes_a_copy_per_block_and_one_for_the_output(dit):
    sites = inspect(*dit).of_kind("conditioning")
    assert len(sites) == 4 and {site.width for site in sites} == {16}
    assert sorted(len(group.sites) for group in tied(sites)) == [1, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_copies_of_diffusers_are_cut(dit, dtype):
    model, inputs = dit
    inputs = inputs | {"hidden_states": inputs["hidden_states"].to(dtype)}
    anatomy = inspect(model.to(dtype), inputs)
    made = strangers.rewrite(anatomy, "prune 66% of class embeddings by greedy compensate=least-squares")
    assert len(made.works) == 3
    shapes = {name: tuple(tensor.shape) for name, tensor in made.compact.named_parameters()}
    for block in range(3):
        root = f"transformer_blocks.{block}.norm1"
        assert shapes[f"{root}.linear.weight"] == (96, 5)
        assert shapes[f"{root}.emb.class_embedder.embedding_table.weight"] == (11, 5)
        assert shapes[f"{root}.emb.timestep_embedder.linear_2.weight"] == (5, 16)
    assert shapes["proj_out_1.weight"] == (32, 5)
    rows = parity(made.compact, made.masked, inputs)
    assert len(rows) == 2 and all(row["holds"] for row in rows), rows

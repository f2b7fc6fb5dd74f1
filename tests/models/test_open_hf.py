"""`hf:PATH`: folders that transformers saved, with and without weights, and every way such a folder can be wrong."""

import json
import sys

import pytest
import saved
import torch

from surgery.anatomy import inspect
from surgery.diagnostics import SurgeryError
from surgery.models import open_model
from surgery.plan.fingerprint import fingerprint
from surgery.verify.outputs import first_tensor

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    return {kind: saved.save(kind, root / kind) for kind in saved.KINDS}


@pytest.fixture
def folder(tmp_path):
    return saved.save("bert", tmp_path / "bert")


def edit(path, **changes):
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def refusal(location, **options):
    with pytest.raises(SurgeryError) as caught:
        open_model(f"hf:{location}", **options)
    return caught.value.diagnostics[0]


def told(fault):
    return " ".join([fault.message, *fault.notes, fault.help])


@pytest.mark.parametrize("kind", saved.KINDS)
def test_a_saved_model_is_its_own_class_with_its_own_weights(kind, folders):
    model = open_model(f"hf:{folders[kind]}")
    name, _, _, task = saved.KINDS[kind]
    assert type(model.module).__name__ == name == model.source["architecture"]
    assert model.source["task"] == task and model.source["library"] == "transformers"
    assert {len(value) for value in model.example_inputs.values()} == {2}
    assert set(model.files) == {"config.json", "model.safetensors"} and model.notes == ()
    expected = getattr(transformers, name).from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        made = first_tensor(model.module(**model.example_inputs))
        assert torch.equal(made, first_tensor(expected(**model.example_inputs, **cacheless(kind))))
    assert not model.module.training


def cacheless(kind):
    return {"use_cache": False} if kind in ("gpt2", "llama", "t5") else {}


@pytest.mark.parametrize("kind", ["llama", "vit"])
def test_without_weights_the_same_graph_on_meta(kind, folders, tmp_path):
    (tmp_path / "config.json").write_text((folders[kind] / "config.json").read_text())
    light, whole = open_model(f"hf:{tmp_path}", weights=False), open_model(f"hf:{folders[kind]}")
    assert all(parameter.is_meta for parameter in light.module.parameters()) and light.files == {}
    found = [inspect(model.module, model.example_inputs) for model in (light, whole)]
    assert fingerprint(found[0].graph_module) == fingerprint(found[1].graph_module)
    assert [site.path for site in found[0].sites] == [site.path for site in found[1].sites]


def test_text_inputs_are_tokens_and_their_mask(folders):
    assert list(open_model(f"hf:{folders['bert']}", weights=False).example_inputs) == ["input_ids", "attention_mask"]
    example = open_model(f"hf:{folders['t5']}").example_inputs
    assert list(example) == ["input_ids", "attention_mask", "decoder_input_ids"]
    assert not torch.isin(example["input_ids"], torch.tensor([0, 3])).any()
    assert open_model(f"hf:{folders['vit']}").example_inputs["pixel_values"].shape == (2, 3, 8, 8)


def test_the_task_is_that_of_the_class_alone():
    from transformers import BartConfig, BertConfig, T5Config

    from surgery.models.huggingface.architecture import class_of

    for config, name, task in (
        (BartConfig(), "BartForConditionalGeneration", "seq2seq-lm"),
        (BartConfig(), "BartModel", None),
        (T5Config(), "T5EncoderModel", "embedding"),
        (BertConfig(), "BertForTokenClassification", "classification"),
        (BertConfig(), "BertForQuestionAnswering", None),
        (BertConfig(), None, "embedding"),
    ):
        made, found = class_of(config, [name] if name else None, "folder")
        assert (made.__name__, found) == (name or "BertModel", task)


def test_shards_and_half_precision(tmp_path):
    folder = saved.save("llama", tmp_path, dtype=torch.bfloat16, max_shard_size="8KB")
    model = open_model(f"hf:{folder}")
    assert len(model.files) > 2
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    edit(folder / "config.json", dtype=None)
    assert next(open_model(f"hf:{folder}", weights=False).module.parameters()).dtype == torch.bfloat16
    next(folder.glob("model-00002*")).unlink()
    assert refusal(folder).code == "S201"


def test_another_dtype_is_asked_for(folders):
    reference = f"hf:{folders['llama']}"
    light, model = (open_model(reference, dtype="bfloat16", weights=weights) for weights in (False, True))
    for one in (light, model):
        assert {parameter.dtype for parameter in one.module.parameters()} == {torch.bfloat16}
        assert one.module.model.rotary_emb.inv_freq.dtype == torch.float32, "as transformers keeps it"
    assert model.source["config"]["dtype"] == "bfloat16"
    pixels = open_model(f"hf:{folders['vit']}", dtype="float16").example_inputs["pixel_values"]
    other = open_model("zoo:digits-classifier", dtype="bfloat16")
    assert pixels.dtype == torch.float16 and other.example_inputs["images"].dtype == torch.bfloat16
    assert other.module(**other.example_inputs).dtype == torch.bfloat16


def test_the_files_beside_come_along(folders):
    files = open_model(f"hf:{folders['llama']}", weights=False).source["tokenizer_files"]
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(files)
    assert files["tokenizer.json"] == (folders["llama"] / "tokenizer.json").read_bytes()


def test_what_the_class_has_no_place_for_is_told(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(load_file(path) | {"head.weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    (note,) = open_model(f"hf:{folder}").notes
    assert "head.weight" in note


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"architectures": ["BertForCausalLMs"]}, "S209", "BertForCausalLMs"),
        ({"architectures": ["LlamaForCausalLM"]}, "S209", "does not have for `bert`"),
        ({"architectures": ["BertForMaskedLMs"]}, "S209", "did you mean `BertForMaskedLM`?"),
        ({"model_type": "brand-new"}, "S209", "does not know"),
        ({"model_type": "brand-new", "auto_map": {"AutoModel": "code.Model"}}, "S209", "its own code"),
        ({"model_type": "whisper", "architectures": ["WhisperModel"]}, "S209", "input_features"),
        ({"quantization_config": {"quant_method": "gptq"}}, "S209", "quantized"),
        ({"num_attention_heads": 3}, "S209", "cannot build"),
        ({"num_hidden_layers": 3}, "S203", "missing: encoder.layer.2"),
        ({"intermediate_size": 32}, "S203", "of another shape"),
        ({"_class_name": "DiTTransformer2DModel"}, "S209", "diffusers:"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(f"{k}" for k in value),
)
def test_configs_that_cannot_be_served(folder, changes, code, words):
    edit(folder / "config.json", **changes)
    fault = refusal(folder)
    assert fault.code == code and words in told(fault), told(fault)
    assert fault.help


@pytest.mark.parametrize(
    ("damage", "code", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "S201", "no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "S209", "not JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "S209", "not a JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "S201", "holds no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "S205", "pickle"),
        (lambda folder: cut(folder / "model.safetensors"), "S202", "cannot be read"),
        (lambda folder: spoil(folder / "model.safetensors"), "S204", "1 NaN"),
    ],
    ids=["no config", "half a config", "a list", "no weights", "pickle", "truncated", "nan"],
)
def test_folders_that_are_damaged(folder, damage, code, words):
    damage(folder)
    fault = refusal(folder)
    assert fault.code == code and words in told(fault), told(fault)
    assert fault.help


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def spoil(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_config_cannot_ask_for_a_kernel_from_the_hub(folder):
    edit(folder / "config.json", attn_implementation="someone/kernel", _attn_implementation="someone/kernel")
    assert open_model(f"hf:{folder}").module.config._attn_implementation == "sdpa"


def test_a_folder_that_is_not_there_and_a_hub_that_does_not_answer(monkeypatch):
    assert "no such folder" in refusal("./absent").message

    def offline(*args, **options):
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    fault = refusal("someone/model@main")
    assert fault.code == "S201" and "no route to the hub" in told(fault) and "hf:./model" in fault.help


def test_a_hub_id_fetches_no_pickles_and_no_code(folders, monkeypatch):
    asked = []

    def given(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(folders["bert"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", given)
    assert open_model("hf:someone/model@v2").source["architecture"] == "BertModel"
    open_model("hf:someone/model", weights=False)
    assert [(name, revision) for name, revision, _ in asked] == [("someone/model", "v2"), ("someone/model", None)]
    assert "*.safetensors" in asked[0][2] and "*.safetensors" not in asked[1][2]
    assert not any(pattern.endswith((".bin", ".py", "*")) for _, _, patterns in asked for pattern in patterns)


def test_without_transformers(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    fault = refusal(folders["bert"])
    assert fault.code == "S206" and "model-surgery[hf]" in fault.help

"""Small models with random weights and a tokenizer of their own, saved as transformers saves them."""

import random
from pathlib import Path
from typing import Any

import torch

WORDS = [f"word{index}" for index in range(60)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
TEXT = SMALL | {"vocab_size": 72, "max_position_embeddings": 32, "pad_token_id": 0}
SEEN = SMALL | {"image_size": 8, "patch_size": 4, "num_channels": 3, "num_labels": 3}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 72, "n_positions": 32}
T5 = {"d_model": 16, "d_ff": 24, "d_kv": 4, "num_layers": 2, "num_heads": 4, "vocab_size": 72}
ENDS = {"bos_token_id": 2, "eos_token_id": 3}
# name: class, its config's class, the config, and the task its class has
KINDS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2 | ENDS, "causal-lm"),
    "llama": ("LlamaForCausalLM", "LlamaConfig", TEXT | ENDS | {"num_key_value_heads": 2}, "causal-lm"),
    "bert": ("BertModel", "BertConfig", TEXT, "embedding"),
    "bert-masked": ("BertForMaskedLM", "BertConfig", TEXT, "masked-lm"),
    "bert-classes": ("BertForSequenceClassification", "BertConfig", TEXT | {"num_labels": 3}, "classification"),
    "vit": ("ViTForImageClassification", "ViTConfig", SEEN, "classification"),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5 | {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0},
        "seq2seq-lm",
    ),
}


def save(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> Path:
    """The folder of a model of this kind, with a tokenizer where it reads text. `options` are of `save_pretrained`."""
    import transformers

    name, config, settings, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval().to(dtype)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder, **options)
    if kind != "vit":
        tokenizer(ends="bert" in kind).save_pretrained(folder)
    return folder


def tokenizer(*, ends: bool) -> Any:
    """One token per word; `ends` puts [CLS] and [SEP] around a sentence."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator([" ".join(WORDS)], trainers.WordLevelTrainer(special_tokens=SPECIAL))
    if ends:
        around = [("[CLS]", 2), ("[SEP]", 3)]
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    names = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=made, **names, **({} if ends else {"eos_token": "[SEP]"}))


def corpus(path: Path, lines: int = 200, seed: int = 0) -> Path:
    """Lines of 3 to 12 words."""
    chance = random.Random(seed)
    rows = (" ".join(chance.choices(WORDS, k=chance.randint(3, 12))) for _ in range(lines))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path

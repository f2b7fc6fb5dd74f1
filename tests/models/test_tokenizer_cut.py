"""Tokenizers lose tokens: a text in tokens that stay is tokenized alike, under the new numbers."""

import json

import pytest
import torch

from surgery.diagnostics import SurgeryError
from surgery.models.tokenizer_cut import alphabet_of, cut_files, cut_tokenizer, merges_of, renumbered
from surgery.targets.vocabulary import freed

tokenizers = pytest.importorskip("tokenizers")

TEXT = """A tokenizer cuts a text into tokens, and a table gives every token a number and a row. The rows that no text of
ours reads are weight without use; where they go, the numbers behind them move up, and the text must still read alike.
She sells sea shells by the sea shore, and the shells she sells are sea shells for sure: unbelievable, unreliable."""
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>"]
KINDS = ("BPE", "WordPiece", "Unigram", "WordLevel")
TRAINERS = {"BPE": "Bpe"}


def trained(kind: str) -> dict:
    """A tokenizer.json of a kind, trained on the text, with ends around every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = {"Unigram": {}, "BPE": {}}.get(kind, {"unk_token": "<unk>"})
    tokenizer = Tokenizer(getattr(models, kind)(**made))
    byte_level = kind == "BPE"
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel() if byte_level else pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.ByteLevel() if byte_level else None
    options = {"special_tokens": SPECIAL, "show_progress": False}
    options |= {} if kind == "WordLevel" else {"vocab_size": 340 if byte_level else 120}
    options |= {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()} if byte_level else {}
    options |= {"unk_token": "<unk>"} if kind == "Unigram" else {}
    tokenizer.train_from_iterator(TEXT.splitlines(), getattr(trainers, f"{TRAINERS.get(kind, kind)}Trainer")(**options))
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return json.loads(tokenizer.to_str())


def words_of(document: dict) -> list[str]:
    vocab = document["model"]["vocab"]
    return [token for token, _ in vocab] if isinstance(vocab, list) else sorted(vocab, key=vocab.get)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_texts_of_kept_tokens_read_alike(kind, seed):
    document = trained(kind)
    before, rows = tokenizers.Tokenizer.from_str(json.dumps(document)), len(words_of(document))
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()
    held = frozenset(range(len(SPECIAL))) | alphabet_of(document)
    gone = freed(order, held, merges_of(document), (rows - len(held)) // 2)
    keep = [one for one in range(rows) if one not in gone]
    assert len(gone) == (rows - len(held)) // 2 > 10
    after = tokenizers.Tokenizer.from_str(json.dumps(cut_tokenizer(document, keep)))
    assert after.get_vocab_size() == len(keep)
    new = {old: place for place, old in enumerate(keep)}
    texts = {word for line in TEXT.splitlines() for word in line.split()} | set(TEXT.splitlines())
    told, changed = 0, 0
    for text in texts:
        old = before.encode(text).ids
        if gone.isdisjoint(old):
            told += 1
            assert after.encode(text).ids == [new[one] for one in old]
        else:
            changed += 1
    assert told > 3 and changed > 3
    assert after.encode("").ids == [new[before.token_to_id(end)] for end in ("<s>", "</s>")]


def test_a_part_goes_after_all_that_is_merged_from_it():
    merges = [(0, 1, 2), (2, 3, 4)]
    assert freed([2, 0, 4, 1, 3], frozenset({0, 1, 3}), merges, 1) == {4}
    assert freed([2, 0, 4, 1, 3], frozenset({0, 1, 3}), merges, 5) == {4, 2}
    assert freed([2, 4], frozenset({4}), merges, 2) == set()


def test_merges_that_lost_a_part_are_dropped():
    document = trained("BPE")
    rows = len(words_of(document))
    keep = [one for one in range(rows) if one < rows - 20]
    cut = cut_tokenizer(document, keep)
    words = cut["model"]["vocab"]
    assert len(cut["model"]["merges"]) < len(document["model"]["merges"])
    for merge in cut["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        assert {left, right, left + right} <= words.keys()


def test_files_follow_and_what_names_old_numbers_is_left_out():
    document = trained("WordLevel")
    keep = [0, 1, 2, 3, 7, 9]
    files = {
        "tokenizer.json": json.dumps(document).encode(),
        "tokenizer_config.json": json.dumps(
            {"added_tokens_decoder": {"2": {"content": "<s>"}, "8": {"content": "x"}}, "model_max_length": 9}
        ).encode(),
        "generation_config.json": json.dumps({"eos_token_id": [3, 9], "bos_token_id": 7, "pad_token_id": 8}).encode(),
        "vocab.txt": b"old numbers",
        "chat_template.jinja": b"{{ messages }}",
    }
    cut, left_out = cut_files(files, keep)
    assert left_out == ("vocab.txt",) and cut["chat_template.jinja"] == files["chat_template.jinja"]
    assert len(json.loads(cut["tokenizer.json"])["model"]["vocab"]) == 6
    assert json.loads(cut["tokenizer_config.json"])["added_tokens_decoder"] == {"2": {"content": "<s>"}}
    told = {"eos_token_id": [3, 5], "bos_token_id": 4, "pad_token_id": None}
    assert json.loads(cut["generation_config.json"]) == told
    part = {"vocab_size": 40, "eos_token_id": 9}
    config = {"vocab_size": 40, "text_config": part, "hidden_size": 3, "sep_token_id": None}
    changed = renumbered(config, {old: place for place, old in enumerate(keep)})
    assert changed == {
        "vocab_size": 6,
        "text_config": {"vocab_size": 6, "eos_token_id": 5},
        "hidden_size": 3,
        "sep_token_id": None,
    }


@pytest.mark.parametrize(("kind", "lost", "told"), [("WordPiece", 0, "unknown token"), ("WordLevel", 2, "around texts")])
def test_what_a_tokenizer_cannot_do_without(kind, lost, told):
    document = trained(kind)
    keep = [one for one in range(len(words_of(document))) if one != lost]
    with pytest.raises(SurgeryError, match=told) as caught:
        cut_tokenizer(document, keep)
    assert caught.value.diagnostics[0].code == "S214"


def test_other_kinds_are_refused():
    with pytest.raises(SurgeryError, match="of the kind `CharDelimiter`"):
        cut_tokenizer({"model": {"type": "CharDelimiter"}}, [0])

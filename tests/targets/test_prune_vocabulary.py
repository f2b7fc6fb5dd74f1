"""Tokens of models nobody here wrote go: the scores are the original's at the tokens that stay."""

import json
from functools import cache

import pytest
import strangers
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import surgery
from surgery.anatomy import Anatomy, inspect
from surgery.anatomy.capture import call, with_batch
from surgery.diagnostics import SurgeryError
from surgery.passes.runner import run_passes
from surgery.session.parity import TOLERANCES
from surgery.targets.context import Calibration, Context
from surgery.verify.outputs import first_tensor
from surgery.verify.size import size

transformers = pytest.importorskip("transformers")

ROWS = 60
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = SIZES | {"vocab_size": ROWS, "max_position_embeddings": 32, "pad_token_id": 0}
ENDS = {"bos_token_id": 57, "eos_token_id": 58}
GROUPED = TEXT | ENDS | {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": ROWS, "n_positions": 32}
SIX = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4, "vocab_size": ROWS}
IDS = {"input_ids": torch.randint(1, ROWS, (2, 10), generator=torch.Generator().manual_seed(1))}
CACHELESS = IDS | {"use_cache": False}
MODELS = {
    "GPT2LMHeadModel": ("GPT2Config", GPT | ENDS, CACHELESS),
    "LlamaForCausalLM": ("LlamaConfig", GROUPED, CACHELESS),
    "LlamaForCausalLM tied": ("LlamaConfig", GROUPED | {"tie_word_embeddings": True}, CACHELESS),
    "BertForMaskedLM": ("BertConfig", TEXT, IDS | {"token_type_ids": torch.zeros(2, 10, dtype=torch.int64)}),
    "RobertaForMaskedLM": ("RobertaConfig", TEXT | {"pad_token_id": 1} | ENDS, IDS),
    "T5ForConditionalGeneration": ("T5Config", SIX, CACHELESS | {"decoder_input_ids": IDS["input_ids"][:, :6]}),
    "BertModel": ("BertConfig", TEXT, IDS),
}
HELD = {
    "GPT2LMHeadModel": {57, 58},
    "LlamaForCausalLM": {0, 57, 58},
    "LlamaForCausalLM tied": {0, 57, 58},
    "BertForMaskedLM": {0},
    "RobertaForMaskedLM": {1, 57, 58},
    "T5ForConditionalGeneration": {0, 1},
    "BertModel": {0},
}
"""The tokens each config names."""


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, dict]:
    config, sizes, inputs = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name.split()[0])(getattr(transformers, config)(**sizes))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval().to(dtype), inputs


@cache
def captured(name: str, dtype: torch.dtype) -> tuple[nn.Module, dict, Anatomy]:
    model, inputs = build(name, dtype)
    return model, inputs, inspect(model, inputs)


def context(model: nn.Module, **settings) -> Context:
    return Context(source={"config": model.config.to_dict()}, **settings)


def cut(anatomy: Anatomy, spec: str, within: Context):
    (work,), graph_module = strangers.works_of(anatomy, spec), anatomy.graph_module
    choice = work.choose(anatomy, within)
    both = [run_passes(graph_module, make(graph_module, choice, within)) for make in (work.passes, work.reference)]
    return work, choice, *both


def drawn(inputs: dict, tokens: torch.Tensor, batch: int, length: int) -> tuple[dict, dict]:
    """Inputs of another size, in tokens that stay: in the original's numbers and in the new ones."""
    chance, old, new = torch.Generator().manual_seed(batch), {}, {}
    for name, value in with_batch(inputs, size=batch).items():
        if not torch.is_tensor(value):
            old[name] = new[name] = value
        elif name.endswith("input_ids"):
            picked = torch.randint(len(tokens), (batch, min(length, value.shape[1])), generator=chance)
            old[name], new[name] = tokens[picked], picked
        else:
            old[name] = new[name] = value[:, :length]
    return old, new


HALF = ("LlamaForCausalLM",)
CASES = [*((name, torch.float32) for name in MODELS), *((name, torch.bfloat16) for name in HALF)]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_scores_are_the_originals_at_the_tokens_that_stay(name, dtype):
    model, inputs, anatomy = captured(name, dtype)
    graphs = {}
    for ids in ("new", "old"):
        spec = f"prune 30% of token embeddings by random seed=5 ids={ids}"
        work, choice, compact, masked = cut(anatomy, spec, context(model))
        graphs[ids] = compact
        keep = choice.keep
        assert len(keep) == 42 and HELD[name] <= set(keep.tolist())
        for batch, length in ((2, 10), (3, 5)):
            old, new = drawn(inputs, keep, batch, length)
            fed = new if ids == "new" else old
            with torch.no_grad():
                ours, slow = first_tensor(call(compact, fed)), first_tensor(call(masked, fed))
                original = first_tensor(call(model, old))
            expected = original if name == "BertModel" else original[..., keep]
            assert ours.shape == expected.shape and torch.equal(ours, slow)
            apart = (ours - expected).double().abs().max() / expected.double().abs().max()
            assert apart < TOLERANCES[dtype][0]
    left = sum(parameter.numel() for parameter in compact.parameters())
    assert work.action(anatomy.graph_module).parameters == sum(p.numel() for p in model.parameters()) - left > 0
    old, new = drawn(inputs, keep, 2, 10)
    saved = size(model, old, samples=2).flops - size(graphs["new"], new, samples=2).flops
    assert saved == work.action(anatomy.graph_module).flops


@pytest.mark.parametrize(("name", "ids"), [("LlamaForCausalLM tied", "new"), ("T5ForConditionalGeneration", "old")])
def test_saved_reloaded_and_trained(name, ids, tmp_path):
    model, inputs = build(name)
    spec = f"prune 30% of token embeddings by magnitude ids={ids}\nprune 25% of mlp channels\n"
    result = surgery.compile(model, spec, example_inputs=inputs, timing=False, controls=ids == "new")
    assert all(row["holds"] for row in result.report["parity"])
    quality = {row["metric"]: row["after"] for row in result.report["quality"]}
    assert 0 < quality["output error"] < float("inf")
    names = [row["name"] for row in result.report["controls"]]
    assert len(names) == len(set(names)) == (8 if ids == "new" else 0)
    result.save(tmp_path / "out")
    stored = surgery.load(tmp_path / "out")
    action = json.loads((tmp_path / "out" / "surgery.json").read_text())["actions"][0]
    keep = torch.tensor(action["choice"]["kept"])
    tables = load_file(tmp_path / "out" / "vocabulary.safetensors")
    forth, back = (next(t for n, t in tables.items() if n.endswith(end)) for end in ("old_to_new", "new_to_old"))
    assert torch.equal(back, keep) and torch.equal(forth[keep], torch.arange(42)) and int((forth < 0).sum()) == 18
    fed = dict(zip(("old", "new"), drawn(inputs, keep, 3, 5), strict=True))[ids]
    assert torch.equal(stored(**fed).logits, result.module(**fed).logits) and stored(**fed).logits.shape[-1] == 42
    stored(**fed).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in stored.parameters())
    left, had = (sum(parameter.numel() for parameter in one.parameters()) for one in (stored, model))
    assert left == result.report["size"]["parameters"]["after"] < had


def calibration(**more) -> Calibration:
    """Tokens 10 to 19 once each, token 20 five times, behind padding token 21 a hundred times."""
    ids = torch.cat([torch.arange(10, 20), torch.full((5,), 20), torch.full((100,), 21)])[None]
    mask = (ids != 21).long()
    return Calibration({"input_ids": ids, "attention_mask": mask}, {"input_ids": None} | more)


@pytest.mark.parametrize(
    ("spec", "stays"),
    [
        ("prune 46 of token embeddings by frequency", {0, 57, 58, *range(10, 21)}),
        ("prune 56 of token embeddings", {0, 57, 58, 20}),
        ("prune 55 token embeddings multiple=8", {0, 57, 58, 20, 10, 11, 12, 13}),
    ],
)
def test_tokens_that_are_never_seen_go_first(spec, stays):
    model, _, anatomy = captured("LlamaForCausalLM", torch.float32)
    (work,) = strangers.works_of(anatomy, spec)
    choice = work.choose(anatomy, context(model, calibration=calibration()))
    assert set(choice.keep.tolist()) == stays
    (head,) = strangers.works_of(anatomy, "prune head 1 of token embeddings by frequency")
    assert 20 not in head.choose(anatomy, context(model, calibration=calibration())).keep


def test_the_unknown_token_stands_in_where_old_ids_are_fed():
    model, inputs, anatomy = captured("LlamaForCausalLM", torch.float32)
    spec = "prune 30% of token embeddings by magnitude ids=old"
    config = model.config.to_dict() | {"unk_token_id": 3}
    _, choice, compact, _ = cut(anatomy, spec, Context(source={"config": config}))
    gone = next(token for token in range(ROWS) if token not in choice.keep)
    assert 3 in choice.keep
    fed = [inputs | {"input_ids": torch.full((2, 6), token)} for token in (gone, 3)]
    assert torch.equal(compact(**fed[0]).logits, compact(**fed[1]).logits)
    _, choice, strict, _ = cut(anatomy, spec, context(model))
    gone = next(token for token in range(ROWS) if token not in choice.keep)
    with pytest.raises(IndexError):
        strict(**inputs | {"input_ids": torch.full((2, 6), gone)})


class Small(nn.Module):
    """Tokens [B, T] -> scores [B, T, 20], the table read again as the head."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(20, 8), nn.Linear(8, 8)

    def scores(self, ids):
        return F.linear(self.layer(self.table(ids)), self.table.weight)

    def forward(self, ids):
        return self.scores(ids)


class Capped(Small):
    """Scores with a bias and a cap, as some decoders have."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(1, 20))

    def forward(self, ids):
        return torch.tanh((self.scores(ids) + self.bias) / 5) * 5


class Padded(Small):
    """Positions are counted where tokens are not padding."""

    def forward(self, ids):
        return self.scores(ids) * (ids != 7).unsqueeze(-1)


class Likely(Small):
    def forward(self, ids):
        return self.scores(ids).softmax(-1)


class Calculating(Small):
    """The number of a token is an input of its own."""

    def forward(self, ids):
        return self.scores(ids) + ids.unsqueeze(-1)


class Read(Small):
    """The table is normed, and read again."""

    def forward(self, ids):
        return F.linear(self.layer(self.table(ids)), F.normalize(self.table.weight))


@cache
def stranger(cls: type[nn.Module]) -> tuple[nn.Module, Anatomy]:
    torch.manual_seed(0)
    model = cls().eval()
    return model, inspect(model, {"ids": torch.arange(10).reshape(2, 5)})


@pytest.mark.parametrize(("cls", "ids"), [(Capped, "new"), (Padded, "new"), (Padded, "old"), (Calculating, "old")])
def test_what_else_reads_ids_and_scores_follows(cls, ids):
    model, anatomy = stranger(cls)
    within = Context(source={"config": {"pad_token_id": 7}})
    _, choice, compact, masked = cut(anatomy, f"prune 25% of token embeddings by random ids={ids}", within)
    picked = torch.randint(len(choice.keep), (3, 7), generator=torch.Generator().manual_seed(0))
    picked[0, 0] = choice.keep.tolist().index(7)
    old = choice.keep[picked]
    fed = picked if ids == "new" else old
    torch.testing.assert_close(compact(fed), model(old)[..., choice.keep])
    assert torch.equal(compact(fed), masked(fed))


REFUSED = [
    (Likely, "prune 30% of token embeddings", "S324", ["`softmax`"]),
    (Calculating, "prune 30% of token embeddings", "S324", ["reads the ids", "ids=old"]),
    (Read, "prune 30% of token embeddings", "S324", ["reads `table.weight` as well"]),
    (Small, "prune 20 token embeddings", "S313", ["leaves none", "at most 19"]),
    (Small, "prune 30% of token embeddings by frequency", "S323", ["needs", "data"]),
    (Small, "prune 30% of token embeddings by effect", "S318", ["not for token embeddings"]),
]


@pytest.mark.parametrize(("cls", "spec", "code", "told"), REFUSED, ids=[f"{c.__name__}: {s}" for c, s, _, _ in REFUSED])
def test_refused_with_the_place(cls, spec, code, told):
    with pytest.raises(SurgeryError) as caught:
        cut(stranger(cls)[1], spec, Context())
    (fault,) = caught.value.diagnostics
    assert fault.code == code
    for part in told:
        assert part in " ".join([fault.message, *fault.notes, fault.help])


def test_special_tokens_are_never_removed():
    _, anatomy = stranger(Small)
    within = Context(source={"config": {"eos_token_id": list(range(10)), "text_config": {"bos_token_id": 11}}})
    _, choice, _, _ = cut(anatomy, "prune 9 token embeddings by random seed=4", within)
    assert set(choice.keep.tolist()) == {*range(10), 11}
    with pytest.raises(SurgeryError, match="11 are special") as caught:
        cut(anatomy, "prune 10 token embeddings by random", within)
    assert caught.value.diagnostics[0].code == "S313"

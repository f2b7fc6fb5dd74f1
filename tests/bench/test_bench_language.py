"""The zoo's decoders are measured on every token once, and the figures reach the document."""

import json

import pytest
import torch

from bench import language

pytest.importorskip("tokenizers")


def test_every_token_is_predicted_once():
    rows = language.windows(torch.arange(21), 5)
    assert rows[:, 1:].flatten().tolist() == list(range(1, 21))
    assert rows[:, 0].tolist() == [0, 5, 10, 15]
    assert len(language.windows(torch.arange(20), 5)) == 3


def test_unscored_tokens_cost_nothing():
    logits = torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])
    nats, likely = language.losses(lambda rows: logits, torch.zeros(1, 2).long(), torch.tensor([[1, -100]]))
    assert nats[0].tolist() == pytest.approx([2.126928, 0.0]) and likely[0, 0] == 0


def test_the_document_holds_every_figure(tmp_path, monkeypatch, capsys):
    from surgery.zoo import stdlib

    monkeypatch.setattr(stdlib, "stream", lambda held_out: stdlib.Stream(torch.arange(1100) % stdlib.TOKENS))
    out = tmp_path / "found.json"
    assert language.main(["--rows", "60", "--windows", "1", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert set(found["tasks-gpt"]) == {"copy", "names", "greater"}
    assert found["tasks-gpt"]["copy"]["accuracy"] > 0.99 and found["tasks-gpt"]["greater"]["floor"] > 1
    held_out = found["code-gpt"]["held out"]
    assert held_out["tokens"] == 512 and held_out["nats_per_token"] > 0
    assert held_out["bits_per_byte"] == pytest.approx(
        held_out["nats_per_token"] * held_out["tokens"] / held_out["bytes"] / 0.693147, rel=1e-4
    )
    assert "zoo:code-gpt  held out" in capsys.readouterr().out

"""From a folder that transformers saved to a proven bundle: sites, plan, apply, every kind of model."""

import json
from io import StringIO

import pytest
import saved

from surgery.cli import main
from surgery.diagnostics import SurgeryError, UnprovenError
from surgery.session import apply, compile

pytest.importorskip("transformers")
METRICS = {
    "causal-lm": {"loss", "perplexity", "logit kl", "agreement"},
    "embedding": {"embedding cosine"},
    "seq2seq-lm": {"loss", "perplexity", "logit kl", "agreement"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    saved.corpus(root / "corpus.txt")
    return root


def spec(root, kind, *clauses, data='text:"{}/corpus.txt" length=16 samples=24'):
    folder = saved.save(kind, root / kind)
    text = [f"model hf:{folder}", f"data {data.format(root)}", "prune 25% of mlp channels by magnitude", *clauses]
    path = root / f"{kind}.surgery"
    path.write_text("\n".join(text) + "\n")
    return path


@pytest.mark.parametrize("kind", ["llama", "bert", "t5"])
def test_a_cut_is_proven_at_two_batch_sizes_and_two_lengths(kind, root):
    result = apply(spec(root, kind), timing=False, controls=False)
    rows = {(row["batch"], row["length"]) for row in result.report["parity"]}
    assert rows == {(2, 12), (5, 12), (2, 8)} and all(row["holds"] for row in result.report["parity"])
    assert {row["metric"] for row in result.report["quality"]} == METRICS[saved.KINDS[kind][3]]
    size = result.report["size"]
    assert size["parameters"]["after"] < size["parameters"]["before"]
    found = result.manifest["data"]
    assert found["held_out"]["rows"] == found["calibration"]["rows"] == 12
    assert len({found["sha256"], found["held_out"]["sha256"], found["calibration"]["sha256"]}) == 3


def test_latency_is_of_a_prefill_as_long_as_the_data_and_of_a_token_behind_it(root):
    path = spec(root, "gpt2", "require latency <= 100x", "require perplexity <= 100x; require logit kl <= 10")
    report = apply(path, compiled=False, controls=False).report
    assert [(row["mode"], row["batch"], row["phase"], row["length"]) for row in report["latency"]] == [
        ("eager", batch, phase, length) for phase, length in (("prefill", 16), ("decode", 15)) for batch in (1, 8, 32)
    ]
    assert report["memory"]["batch"] == 32 and len(report["requirements"]) == 3
    with pytest.raises(UnprovenError) as caught:
        apply(spec(root, "gpt2", "require perplexity <= 0.01x"), timing=False, controls=False)
    assert [one.code for one in caught.value.diagnostics] == ["S602"]


def test_a_batch_too_large_for_its_outputs_is_skipped_and_told(root, monkeypatch):
    from rich.console import Console

    from surgery.report.terminal import render
    from surgery.session import clocked

    monkeypatch.setattr(clocked, "LARGEST", 10 * 16 * 72 * 4)
    report = apply(spec(root, "gpt2"), compiled=False, controls=False).report
    runs = [(row["phase"], row["batch"]) for row in report["latency"] if "skipped" not in row]
    assert runs == [("prefill", 1), ("prefill", 8), ("decode", 1), ("decode", 8)]
    assert report["memory"]["batch"] == 8
    render(report, Console(width=120, file=(told := StringIO())))
    assert "eager, batch 8, prefill of 16" in told.getvalue()
    assert "skipped, the outputs of batch 32 take more than" in told.getvalue()


def test_the_next_token_is_that_of_the_whole_graph(root):
    import torch

    from surgery.anatomy.capture import capture
    from surgery.generation import decoder_of
    from surgery.models import open_model
    from surgery.session.decoding import decode_rows, next_token

    for kind in ("llama", "t5"):
        model = open_model(f"hf:{saved.save(kind, root / kind)}")
        graph = capture(model.module, model.example_inputs)
        read = next_token(decoder_of(graph), model.example_inputs)
        with torch.no_grad():
            whole = model.module(**model.example_inputs).logits[:, -1:]
            assert all(torch.allclose(read(), whole, rtol=1e-4, atol=1e-4) for _ in range(3)), kind
    model = open_model(f"hf:{saved.save('bert-masked', root / 'bert-masked')}")
    graph = capture(model.module, model.example_inputs)
    (row,) = decode_rows(graph, graph, model.example_inputs, (1, 8), lambda *told: None)
    assert row["phase"] == "decode" and row["skipped"]


def test_sites_plan_and_a_plan_applied(root, capsys, tmp_path, monkeypatch):
    path = spec(root, "vit", data="noise samples=8")
    assert main(["sites", f"hf:{root}/vit", "--json"]) == 0
    kinds = {site["kind"] for site in json.loads(capsys.readouterr().out)["sites"]}
    assert {"attention", "mlp", "block"} <= kinds
    assert main(["plan", str(path), "-o", str(tmp_path / "plan.json"), "--quiet"]) == 0
    out = tmp_path / "out"
    assert main(["apply", str(tmp_path / "plan.json"), "--out", str(out), "--no-timing", "--no-controls"]) == 0
    manifest = json.loads((out / "surgery.json").read_text())
    assert set(manifest["model"]["files"]) == {"config.json", "model.safetensors"}


def test_a_length_beyond_the_model_points_at_the_clause(root, capsys):
    path = spec(root, "gpt2", data='text:"{}/corpus.txt" length=64')
    assert main(["apply", str(path), "--no-timing"]) == 1
    told = capsys.readouterr().err
    assert "S212" in told and "gpt2.surgery:2" in told and "write `length=32` or less" in told


def test_data_of_a_size_the_graph_was_not_captured_for(tmp_path):
    import torch
    from safetensors.torch import save_file
    from torch import nn

    class Fixed(nn.Module):
        """Positions are added to exactly four vectors."""

        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(torch.zeros(4, 6))
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

        def forward(self, x):
            return self.down(torch.relu(self.up(x + self.positions)))

    save_file({"x": torch.randn(5, 3, 6)}, tmp_path / "x.safetensors")
    text = f'data tensors:"{tmp_path}/x.safetensors"; prune 25% of mlp channels'
    with pytest.raises(SurgeryError) as caught:
        compile(Fixed().eval(), text, example_inputs={"x": torch.randn(2, 4, 6)})
    (fault,) = caught.value.diagnostics
    assert fault.code == "S212" and "x as [3, 6] a row" in fault.message and fault.span.text.startswith("data")

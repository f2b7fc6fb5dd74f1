"""Two processes with Gloo on a CPU train to the weights that one trains to, copied (DDP) or shared out (FSDP2)."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import beside
import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.diagnostics import SurgeryError
from surgery.training.engine import train
from surgery.training.objective import Recovery
from surgery.training.settings import Settings

HERE = Path(__file__).parent
TWO = 2


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes wrote."""
    out = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(TWO), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    save_file(tiny_model.inputs(40), out / "rows.safetensors")
    path = os.pathsep.join(map(str, (HERE.parents[1], HERE, Path(tiny_model.__file__).parent)))
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "beside.py"), str(out)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(TWO)
    ]
    try:
        told = [process.communicate(timeout=120)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), told
    assert not any("Warning" in text for text in told), told
    return out


@pytest.mark.parametrize("shard", ["none", "fsdp"])
@pytest.mark.parametrize("name", beside.CASES)
def test_two_processes_train_as_one_on_the_same_rows(name, shard, together):
    alone = beside.case(name)
    first, second = (load_file(together / f"{name}-{shard}-{rank}.safetensors") for rank in range(TWO))
    assert first.keys() == second.keys() == {*alone.weights, "loss", "penalty"}
    for key, value in alone.weights.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=1e-6, atol=1e-8, msg=key)
    for key in ("loss", "penalty"):
        told = torch.tensor([row[key] for row in alone.history])
        torch.testing.assert_close(first[key], told, rtol=1e-6, atol=1e-6)
    assert "unread.weight" not in alone.weights


@pytest.mark.parametrize("shard", ["none", "fsdp"])
def test_the_first_process_writes_the_checkpoint_and_all_go_on_from_it(shard, together):
    assert [path.name for path in (together / f"kept-{shard}").iterdir()] == ["step-000006"]
    first = load_file(together / f"plain-{shard}-0.safetensors")
    for rank in range(TWO):
        again = load_file(together / f"again-{shard}-{rank}.safetensors")
        assert all(torch.equal(again[key], first[key]) for key in again)
    mine = beside.case("plain", checkpoint=together / f"kept-{shard}")
    assert all(torch.equal(mine.weights[key], first[key]) for key in mine.weights), "one process reads it too"


def test_a_spec_is_applied_by_all_and_told_and_saved_by_the_first(together, tmp_path, monkeypatch):
    first, second = ((together / f"told-{rank}").read_text() for rank in range(TWO))
    assert first.startswith("tiny_model:make") and first.endswith("0\n") and second == "0\n"
    monkeypatch.chdir(tmp_path)
    alone = surgery.apply(together / "heal.surgery", model="tiny_model:make", timing=False, controls=False)
    stored = load_file(together / "out" / "model.safetensors")
    for name, value in alone.graph_module.state_dict().items():
        torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_processes_that_would_train_differently_are_refused_rather_than_left_waiting(together):
    told = [(together / f"refused-{rank}").read_text() for rank in range(TWO)]
    assert told == ["the processes do not see the same model, data or settings"] * TWO


def test_a_model_is_not_shared_out_in_one_process():
    import taught

    graph = taught.graph()
    with pytest.raises(SurgeryError, match="this is the only one"):
        train(graph, taught.calibration(graph), Settings(steps=2, batch=4, shard="fsdp"), Recovery())

"""`surgery apply`: one document, one bundle, one table."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.cli import main
from surgery.cli.progress import bar
from surgery.models import open_model
from surgery.report.document import validate

SPEC = """\
model zoo:digits-dit
data digits samples=10 steps=2
analyze embeddings
prune tail 66% of class embeddings
require parameters <= 0.75x
require denoising loss <= 2x
require latency <= 1000x
"""
TINY = "prune tail 50% of class embeddings\n"
MODELS = str(Path(__file__).parents[1] / "session")


class Streams:
    """What a command printed, read as text."""

    def __init__(self, status: int, out: str, err: str):
        self.status, self.out, self.err = status, out, err


def surgery_command(*arguments, cwd: Path, **environment) -> Streams:
    done = subprocess.run(
        [sys.executable, "-m", "surgery", *map(str, arguments)],
        cwd=cwd,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(Path(surgery.__file__).parents[1]), MODELS])}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Streams(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """(report document, bundle folder) of one run on the zoo's model, controls and clock included."""
    folder = tmp_path_factory.mktemp("applied")
    (folder / "my.surgery").write_text(SPEC)
    done = surgery_command("apply", "my.surgery", "--out", "bundle", "--no-compile", "--json", cwd=folder)
    assert (done.status, done.err) == (0, "")
    return json.loads(done.out), folder / "bundle"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder to work in where `my.surgery` halves the c of `--model tiny_model:make`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.surgery").write_text(TINY)
    return tmp_path


QUICK = ["--model", "tiny_model:make", "--no-timing", "--no-controls"]


def test_one_document(applied):
    document, _ = applied
    validate(document)
    assert document["format"] == "surgery.report/1"
    assert document["bundle"] == "bundle"
    (action,) = document["actions"]
    assert (action["before"], action["after"]) == ({"width": 96}, {"width": 33})
    assert action["place"] == "my.surgery:4:1" and len(action["choice"]["kept"]) == 33
    assert document["parity"] and all(row["holds"] for row in document["parity"])
    quality = {row["metric"]: (row["before"], row["after"]) for row in document["quality"]}
    assert quality.keys() == {"denoising loss", "accuracy", "frechet", "paired error"}
    assert document["size"]["parameters"]["after"] < 0.75 * document["size"]["parameters"]["before"]
    saved = {key: change["before"] - change["after"] for key, change in document["size"].items()}
    assert saved["parameters"] == action["saved"]["parameters"] and saved["bytes"] == 4 * saved["parameters"]
    assert {(row["mode"], row["batch"]) for row in document["latency"]} == {("eager", 1), ("eager", 32)}
    assert [row["holds"] for row in document["requirements"]] == [True] * 3
    assert [row["text"] for row in document["requirements"]] == SPEC.splitlines()[4:]
    timed = next(row for row in document["latency"] if row["batch"] == 1)
    assert document["requirements"][2]["measured"] == timed["after_ms"] / 1e3
    assert len(document["controls"]) == 7
    assert {found["kind"] for found in document["findings"]} == {"embeddings", "samples"}


def test_the_bundle_keeps_the_report(applied):
    document, folder = applied
    kept = json.loads((folder / "report.json").read_text())
    assert kept["quality"] == document["quality"] and kept["latency"] == document["latency"]
    assert kept["bundle"] is None
    names = {"model.safetensors", "graph.json", "surgery.json", "spec.surgery", "report.json", "report.html"}
    assert {file.name for file in folder.iterdir()} == names
    assert (folder / "spec.surgery").read_text() == SPEC


def test_a_new_process_without_the_models_code_gives_the_same_bits(applied, tmp_path):
    _, folder = applied
    given = open_model("zoo:digits-dit").example_inputs
    expected = surgery.load(folder)(**given)
    save_file({name: value.contiguous() for name, value in given.items()}, tmp_path / "in.safetensors")
    code = (
        "import sys\n"
        "for name in ('surgery.zoo', 'surgery.models', 'sklearn', 'diffusers', 'transformers'): sys.modules[name] = None\n"
        "import surgery\n"
        "from safetensors.torch import load_file, save_file\n"
        f"output = surgery.load({str(folder)!r})(**load_file('in.safetensors'))\n"
        "save_file({'output': output.contiguous()}, 'out.safetensors')\n"
    )
    path = {"PYTHONPATH": str(Path(surgery.__file__).parents[1]), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | path, check=True)
    assert torch.equal(load_file(tmp_path / "out.safetensors")["output"], expected)


def test_the_module_in_hand_and_the_one_loaded_give_the_same_bits(tmp_path):
    data = "data digits samples=2 steps=1"
    result = surgery.compile("zoo:digits-dit", f"{data}; prune 80% of class embeddings", controls=False, timing=False)
    result.save(tmp_path / "bundle")
    x, t, y = open_model("zoo:digits-dit").example_inputs.values()
    assert torch.equal(surgery.load(tmp_path / "bundle")(x, t, y), result.module(x, t, y=y))


def test_without_out_nothing_is_saved_and_it_says_how(tiny, capsys):
    assert main(["apply", "my.surgery", *QUICK]) == 0
    printed = capsys.readouterr()
    assert "nothing was saved" in printed.out
    assert printed.err == "to save the result: `surgery apply my.surgery --out FOLDER`\n"
    assert sorted(file.name for file in tiny.iterdir()) == ["my.surgery"]


def test_with_out_it_says_where(tiny, capsys):
    assert main(["apply", "my.surgery", *QUICK, "--out", "deep/er/half"]) == 0
    printed = capsys.readouterr()
    assert "saved in deep/er/half" in printed.out and printed.err == ""
    assert surgery.load("deep/er/half").modulation.weight.shape == (32, 4)


def test_quiet_prints_results_only(tiny, capsys):
    assert main(["apply", "my.surgery", *QUICK, "--quiet"]) == 0
    printed = capsys.readouterr()
    assert "width 8 → 4" in printed.out and printed.err == ""


def test_locked_twice_gives_the_same_bytes(tiny, tmp_path, monkeypatch, capsys):
    bundles = {"one": "my.surgery", "two": "my.surgery", "three": "../my.surgery", "four": str(tmp_path / "my.surgery")}
    for out, spec in bundles.items():
        folder = tmp_path / "elsewhere" if out in ("three", "four") else tmp_path
        folder.mkdir(exist_ok=True)
        monkeypatch.chdir(folder)
        assert main(["apply", spec, "--model", "tiny_model:make", "--locked", "--out", str(tmp_path / out)]) == 0
    first = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    assert "latency" not in json.loads(first["report.json"])
    for out in bundles:
        assert {file.name: file.read_bytes() for file in (tmp_path / out).iterdir()} == first


@pytest.mark.parametrize("spec", ["analyze embeddings\n", "analyze embeddings of class embeddings\n"])
def test_an_analysis_alone(spec, tiny, capsys):
    (tiny / "look.surgery").write_text(spec)
    assert main(["apply", "look.surgery", "--model", "tiny_model:make", "--out", "looked", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    validate(document)
    assert [found["kind"] for found in document["findings"]] == ["embeddings"]
    assert document["actions"] == document["quality"] == document["parity"] == document["latency"] == []
    model, inputs = tiny_model.make()
    assert torch.equal(surgery.load("looked")(**inputs), model(**inputs))
    assert json.loads((tiny / "looked" / "report.json").read_text())["findings"] == document["findings"]


def test_help_tells_what_an_analysis_saves(capsys):
    assert main(["apply", "--help"]) == 0
    text = capsys.readouterr().out
    assert "only analyses" in text and "`require latency`" in text


def test_print_after(tiny, capsys):
    assert main(["apply", "my.surgery", *QUICK, "--print-after", "prune"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("# after prune: prune tail 50% of class embeddings\n") and "modulation" in err
    assert main(["apply", "my.surgery", *QUICK, "--print-after", "nothing", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_a_spec_from_a_pipe(tiny, monkeypatch, capsys):
    from io import BytesIO, TextIOWrapper

    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(TINY.encode())))
    assert main(["apply", "-", *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["actions"][0]["place"] == "<stdin>:1:1"


def test_a_spec_in_json(tiny, capsys):
    (tiny / "my.json").write_text('{"steps": [{"prune": "tail 50%", "of": "class embeddings"}]}')
    assert main(["apply", "my.json", *QUICK, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"] == TINY


@pytest.mark.parametrize(
    ("terminal", "options", "shown"),
    [(True, {}, True), (False, {}, False), (True, {"quiet": True}, False), (True, {"json": True}, False)],
)
def test_a_progress_bar_on_terminals_only(terminal, options, shown, monkeypatch, capsys):
    args = Namespace(**{"quiet": False, "json": False, "color": "never"} | options)
    monkeypatch.setattr("surgery.cli.progress.PATIENCE_S", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with bar(args) as progress:
        progress("measuring the original", 1, 4)
    assert ("measuring the original" in capsys.readouterr().err) is shown

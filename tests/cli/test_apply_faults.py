"""Everything a person can get wrong: a message with a place and a cure, the right exit code, nothing half-written."""

import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import tiny_model
import torch

import surgery
from surgery.cli import main
from surgery.diagnostics.catalogue import codes

HALF = "prune tail 50% of class embeddings\n"
QUICK = ["--model", "tiny_model:make", "--no-timing", "--no-controls"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of one's own; `tiny_model` of the session tests can be imported."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


SPECS = {
    # spec: code, place, told, cure
    "prun tail 50% of class embeddings": ("S103", "1:1", "prun", "`prune`"),
    "prune tail 50% of clas embeddings": ("S104", "1:19", "no site matches `clas embeddings`", "`class embeddings`"),
    "prune tail 50% of token embeddings": ("S104", "1:19", "no site matches", "`surgery sites"),
    "prune tail 50% of class embeddings colour=red": ("S105", "1:36", "colour", ""),
    "prune tail 50% of class embeddings seed=1 seed=2": ("S106", "1:48", "seed", ""),
    "prune tail 166% of class embeddings": ("", "1:12", "166%", ""),
    "prune tail 100% of class embeddings": ("S313", "1:1", "leaves none", "at most 7"),
    f"{HALF}prune tail 20% of class embeddings": ("S116", "2:1", "already pruned", "one clause"),
    f"{HALF}require size <= 1x; require size >= 2x": ("S117", "2:21", "no size meets both", ""),
    "prune tail 50% of class embeddings by greedy scope=per-vector": ("S122", "1:1", "greedy", "by magnitude"),
    "": ("S119", "", "asks for nothing", "`surgery explain`"),
    "# nothing but a comment\n": ("S119", "1:1", "asks for nothing", ""),
    f"data digits\n{HALF}": ("S212", "1:1", "`digits` does not fit", "data noise"),
    f"data digit\n{HALF}": ("S211", "1:1", "unknown data `digit`", "did you mean `digits`?"),
    f'data tensors:"gone.safetensors"\n{HALF}': ("S201", "1:1", "no checkpoint", "check the path"),
    f"{HALF}require accuracy >= 90%": ("S603", "2:1", "not measured", "name data that fits"),
    f"{HALF}require loss <= 1.02x": ("S604", "2:1", "compares with the original", "require output error <= 5%"),
    f"{HALF}require lateny <= 1x": ("S118", "2:9", "unknown metric `lateny`", "did you mean `latency`?"),
}


@pytest.mark.parametrize("spec", SPECS)
def test_a_faulty_spec(spec, folder, capsys):
    code, place, told, cure = SPECS[spec]
    (folder / "my.surgery").write_text(spec)
    assert main(["apply", "my.surgery", *QUICK, "--out", "half"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error[{code}" if code else "error[S1") and told in printed.err
    assert not place or f"--> my.surgery:{place}\n" in printed.err
    assert cure in printed.err.partition("= help:")[2] if cure else True
    assert printed.out == "" and "Traceback" not in printed.err
    assert [file.name for file in folder.iterdir()] == ["my.surgery"]


def test_steps_beyond_the_schedule(folder, capsys):
    (folder / "my.surgery").write_text(f"model zoo:digits-dit\ndata digits steps=5000\n{HALF}")
    assert main(["apply", "my.surgery"]) == 1
    err = capsys.readouterr().err
    assert "error[S212]: steps=5000" in err and "--> my.surgery:2:1" in err


REFERENCES = {
    "zoo:digits-dti": ("S201", "did you mean `digits-dit`?"),
    "absent-bundle": ("S201", "a path names a bundle"),
    "diffusers:absent": ("S201", "save_pretrained"),
    "tiny_model:make": ("S207", "--model tiny_model:make"),
    "ftp://x": ("S200", "one of"),
}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("command", ["apply", "plan"])
def test_a_wrong_model_in_a_spec(command, reference, folder, capsys):
    code, cure = REFERENCES[reference]
    (folder / "my.surgery").write_text(f"# mine\nmodel {reference}\n{HALF}")
    assert main([command, "my.surgery"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error[{code}]") and cure in err.partition("= help:")[2]
    assert "--> my.surgery:2:1\n" in err


def test_no_model_at_all(folder, capsys):
    (folder / "my.surgery").write_text(HALF)
    assert main(["apply", "my.surgery"]) == 1
    assert "error[S321]" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["folder", "missing", "unreadable", "binary"])
def test_a_spec_that_cannot_be_read(what, folder, capsys, monkeypatch):
    path = folder / "my.surgery"
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        path.write_bytes(b"\xff\xfe" if what == "binary" else HALF.encode())
    if what == "unreadable":
        refuse_reading(monkeypatch, path)
    assert main(["apply", "my.surgery"]) == 1
    err = capsys.readouterr().err
    told = {"folder": "is a folder", "missing": "no such file", "unreadable": "denied", "binary": "not a text file"}
    assert err.startswith("error[S01") and told[what] in err


def refuse_reading(monkeypatch, path):
    """As for anybody but root: a file without read permission."""
    path.chmod(0)
    if os.geteuid() == 0:
        opened = Path.open

        def refusing(self, *args, **more):
            if self.name == path.name:
                raise PermissionError(13, "Permission denied", str(self))
            return opened(self, *args, **more)

        monkeypatch.setattr(Path, "open", refusing)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A bundle of the tiny model."""
    model, inputs = tiny_model.make()
    result = surgery.compile(model, HALF, example_inputs=inputs, timing=False, controls=False)
    return result.save(tmp_path_factory.mktemp("half") / "half")


def nan(result_folder, folder):
    module = surgery.load(result_folder)
    module.out.bias.data[0] = float("nan")
    manifest = json.loads((result_folder / "surgery.json").read_text())
    surgery.save(folder, module, manifest=manifest)


def truncated(result_folder, folder):
    shutil.copytree(result_folder, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def foreign(result_folder, folder):
    shutil.copytree(result_folder, folder)
    model, inputs = tiny_model.TinyDit(width=12), tiny_model.inputs(2)
    result = surgery.compile(model, HALF, example_inputs=inputs, timing=False, controls=False)
    shutil.copy(result.save(folder.with_name("other")) / "model.safetensors", folder)


def missing(result_folder, folder):
    shutil.copytree(result_folder, folder)
    (folder / "model.safetensors").unlink()


DAMAGE = {
    nan: ("S204", "out.bias: 1 NaN"),
    truncated: ("S704", "truncated"),
    foreign: ("S704", ""),
    missing: ("S703", ""),
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint(damage, half, folder, capsys):
    damage(half, folder / "bad")
    (folder / "my.surgery").write_text(f"model ./bad\n{HALF}")
    assert main(["apply", "my.surgery", "--out", "out", "--no-timing"]) == 1
    err = capsys.readouterr().err
    code, told = DAMAGE[damage]
    assert err.startswith(f"error[{code}]") and told in err and "= help:" in err
    assert not (folder / "out").exists()


def test_nan_weights_of_a_module():
    model, inputs = tiny_model.diverged()
    with pytest.raises(surgery.SurgeryError, match="S204") as caught:
        surgery.compile(model, HALF, example_inputs=inputs)
    assert caught.value.diagnostics[0].notes == ("out.weight: 1 NaN and 0 infinite of 96 values",)


def test_outputs_that_are_not_finite():
    model, inputs = tiny_model.make()
    inputs["x"][0, 0] = float("inf")
    with pytest.raises(surgery.SurgeryError, match="S213.*TinyDit"):
        surgery.compile(model, HALF, example_inputs=inputs)


class OneSize(tiny_model.TinyDit):
    def forward(self, x, t, y):
        return super().forward(x, t, y).view(4, 6)


def test_a_model_of_one_batch_size():
    example = tiny_model.inputs(4)
    assert surgery.plan(OneSize(), HALF, example_inputs=example).actions
    with pytest.raises(surgery.SurgeryError, match="(?s)S322.*OneSize.*x.shape") as caught:
        surgery.compile(OneSize(), HALF, example_inputs=example)
    assert caught.value.diagnostics[0].notes[0].startswith("the batch is fixed to 4")


TAKEN = {
    "a folder": (lambda path: path.mkdir(), [], "exists", "--overwrite"),
    "a file": (lambda path: path.write_text("mine"), [], "exists", "--overwrite"),
    "no bundle": (lambda path: (path.mkdir(), (path / "mine").touch()), ["--overwrite"], "is not a bundle", "another"),
    "below a file": (lambda path: path.with_name("above").touch(), ["--out", "above/out"], "not a folder", "another"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_taken_output_is_refused_before_any_work(case, folder, capsys, monkeypatch):
    monkeypatch.setattr("surgery.session.prepare", lambda *_, **__: pytest.fail("the work began"))
    make, options, told, cure = TAKEN[case]
    make(folder / "out")
    before = sorted(folder.rglob("*"))
    (folder / "my.surgery").write_text(HALF)
    assert main(["apply", "my.surgery", *QUICK, "--out", "out", *options]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error[S70") and told in err and cure in err.partition("= help:")[2]
    assert sorted(folder.rglob("*")) == sorted([*before, folder / "my.surgery"])


def test_python_too_refuses_before_any_work(folder, monkeypatch):
    monkeypatch.setattr("surgery.session.operate.prepare", lambda *_, **__: pytest.fail("the work began"))
    (folder / "out").mkdir()
    with pytest.raises(surgery.SurgeryError, match="S701"):
        surgery.apply(HALF, "out")


def test_overwriting_a_bundle(half, folder, capsys):
    shutil.copytree(half, folder / "out")
    (folder / "my.surgery").write_text(HALF.replace("50%", "25%"))
    assert main(["apply", "my.surgery", *QUICK, "--out", "out", "--overwrite", "-q"]) == 0
    assert surgery.load("out").modulation.weight.shape == (32, 6)
    assert sorted(file.name for file in folder.iterdir()) == ["my.surgery", "out"]


def test_a_full_disk(folder, capsys):
    """The system refuses every file above 2 kB, as a full disk would in mid-write."""
    (folder / "my.surgery").write_text(HALF)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        status = main(["apply", "my.surgery", *QUICK, "--out", "out"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1
    printed = capsys.readouterr()
    assert "error[S702]: cannot write the bundle" in printed.err and "nothing was left behind" in printed.err
    assert [file.name for file in folder.iterdir()] == ["my.surgery"]


def broken_promise(folder):
    (folder / "my.surgery").write_text(f"{HALF}require parameters <= 0.1x\nrequire output error <= 500%\n")
    return ["apply", "my.surgery", *QUICK, "--out", "out"]


def test_a_broken_requirement_shows_the_table_and_saves_nothing(folder, capsys):
    assert main(broken_promise(folder)) == 3
    printed = capsys.readouterr()
    assert "✗ require parameters <= 0.1x" in printed.out and "✓ require output error <= 500%" in printed.out
    assert "nothing was saved" in printed.out
    assert printed.err.startswith("error[S602]: `require parameters <= 0.1x` does not hold\n")
    assert "--> my.surgery:2:1" in printed.err
    assert [file.name for file in folder.iterdir()] == ["my.surgery"]


def test_a_broken_requirement_as_json(folder, capsys):
    assert main([*broken_promise(folder), "--json"]) == 3
    printed = capsys.readouterr()
    rows = json.loads(printed.out)["requirements"]
    assert [row["holds"] for row in rows] == [False, True] and json.loads(printed.out)["bundle"] is None
    assert json.loads(printed.err)["diagnostics"][0]["code"] == "S602"


def test_a_broken_proof(folder, capsys, monkeypatch):
    """Parity is judged for real: the reference is made of another model."""
    from surgery.session import operate

    def wrong(prepared, choices, rewritten, context):
        model = tiny_model.TinyDit()
        yield "masked == compacted", rewritten, surgery.inspect(model, tiny_model.inputs(2)).graph_module

    monkeypatch.setattr(operate, "references", wrong)
    (folder / "my.surgery").write_text(HALF)
    assert main(["apply", "my.surgery", *QUICK, "--out", "out", "--json"]) == 3
    printed = capsys.readouterr()
    assert {one["code"] for one in json.loads(printed.err)["diagnostics"]} == {"S601"}
    assert not any(row["holds"] for row in json.loads(printed.out)["parity"])
    assert not (folder / "out").exists()


def test_a_model_gone_wrong_is_still_one_json_document(folder, capsys, monkeypatch):
    """NaN that only the rewritten model shows: JSON has no NaN, and no requirement holds."""
    from surgery.session import operate

    made = operate.rewrite

    def spoilt(*args, **more):
        graph_module = made(*args, **more)
        graph_module.out.bias = torch.nn.Parameter(torch.full((6,), float("nan")))
        return graph_module

    monkeypatch.setattr(operate, "rewrite", spoilt)
    (folder / "my.surgery").write_text(f"{HALF}require output error <= 500%\n")
    assert main(["apply", "my.surgery", *QUICK, "--json"]) == 3
    printed = capsys.readouterr()
    document = json.loads(printed.out, parse_constant=lambda constant: pytest.fail(f"{constant} in JSON"))
    assert document["requirements"][0] | {"place": ""} == {
        "text": "require output error <= 500%",
        "place": "",
        "measured": None,
        "before": 0.0,
        "limit": 5.0,
        "holds": False,
    }
    assert main(["apply", "my.surgery", *QUICK]) == 3, "the table can be printed too"
    assert "✗ require output error <= 500%" in capsys.readouterr().out


def test_every_code_here_is_explained():
    assert {"S213", "S320", "S321", "S601", "S602", "S603", "S604", "S322"} <= set(codes())

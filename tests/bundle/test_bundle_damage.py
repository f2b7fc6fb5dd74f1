"""A bundle that was cut, changed, mixed up or never one: the message names the file."""

import json
import shutil

import pytest
import torch
from bundle_cases import capture, contents, inputs, same

from surgery.bundle import load, read_manifest, save
from surgery.diagnostics import BundleError


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def fault(action):
    with pytest.raises(BundleError) as caught:
        action()
    found = caught.value.diagnostics[0]
    assert found.help
    return found.code, found.message


@pytest.mark.parametrize("name", ["graph.json", "model.safetensors"])
def test_truncated_and_changed(copied, name):
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[:-10])
    assert fault(lambda: load(copied)) == (
        "S704",
        f"{name} is truncated: {len(whole) - 10} bytes, surgery.json says {len(whole)}",
    )
    (copied / name).write_bytes(whole + b" ")
    assert fault(lambda: load(copied))[0] == "S704"
    (copied / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert fault(lambda: load(copied)) == ("S704", f"{name} is changed: its hash is not the one in surgery.json")
    (copied / name).unlink()
    assert fault(lambda: load(copied))[0] == "S703"


def test_without_hashes_damage_is_still_no_crash(copied):
    whole = (copied / "model.safetensors").read_bytes()
    for damaged in (b"", whole[:4], whole[:100], b"\xff" * 200, whole[:-1]):
        (copied / "model.safetensors").write_bytes(damaged)
        code, message = fault(lambda: load(copied, verify=False))
        assert code == "S710" and "model.safetensors" in message
    (copied / "model.safetensors").unlink()
    assert fault(lambda: load(copied, verify=False))[0] == "S703"


def test_files_of_two_bundles(copied, tmp_path):
    other = save(tmp_path / "other", capture(torch.nn.Linear(2, 2), torch.ones(2, 2)), manifest={})
    shutil.copy(other / "model.safetensors", copied / "model.safetensors")
    assert fault(lambda: load(copied, verify=False))[0] == "S710"


def test_a_missing_report_matters_only_to_verification(transformer, tmp_path):
    folder = save(tmp_path / "b", transformer, manifest={}, report={"format": "surgery.report/1"}, spec="prune 1%")
    (folder / "report.json").unlink()
    assert fault(lambda: load(folder)) == ("S703", f"report.json is missing from the bundle `{folder}`")
    assert same(load(folder, verify=False)(**inputs()), transformer(**inputs()))


def test_what_is_no_bundle(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, word in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "no surgery.json"),
        (tmp_path / "file", "a file"),
    ):
        code, message = fault(lambda path=path: load(path))
        assert code == "S703" and word in message
        assert fault(lambda path=path: read_manifest(path))[0] == "S703"


MANIFESTS = {
    "not json": ("{", "S705"),
    "other format": ('{"format": "x"}', "S705"),
    "newer": ('{"format": "surgery.bundle/9", "files": {}}', "S706"),
    "no files": ('{"format": "surgery.bundle/1"}', "S705"),
    "no graph": ('{"format": "surgery.bundle/1", "files": {}}', "S705"),
    "no hash": ('{"format": "surgery.bundle/1", "files": {"graph.json": {"bytes": 1}}}', "S705"),
    "bad hash": ('{"format": "surgery.bundle/1", "files": {"graph.json": {"bytes": 1, "sha256": "x"}}}', "S705"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_bad_manifest(copied, name):
    text, code = MANIFESTS[name]
    (copied / "surgery.json").write_text(text)
    assert fault(lambda: load(copied))[0] == code


NAMES = ["../x", "/etc/passwd", "a/b", "a\\b", "..", ".", ".hidden", "", "x\0y", "x\n", "a..b", "C:x", "ü", "x" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder(copied, transformer, tmp_path, name):
    manifest = json.loads((copied / "surgery.json").read_text())
    manifest["files"][name] = manifest["files"]["model.safetensors"]
    (copied / "surgery.json").write_text(json.dumps(manifest))
    assert fault(lambda: load(copied))[0] == "S712"
    assert fault(lambda: save(tmp_path / "b", transformer, manifest={}, extra={name: b""}))[0] == "S712"
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "name", ["graph.json", "Surgery.json", "model.safetensors", "MODEL-00001-of-00002.safetensors"]
)
def test_names_of_the_bundles_own_files(transformer, tmp_path, name):
    assert fault(lambda: save(tmp_path / "b", transformer, manifest={}, extra={name: b""}))[0] == "S712"


def test_extra_files_and_manifest(transformer, tmp_path):
    given = {"model": {"reference": "zoo:x"}, "actions": [{"kept": [0, 5]}], "format": "mine", "seed": 0}
    extra = {"config.json": b"{}", "tokenizer.model": b"\x00"}
    folder = save(tmp_path / "b", transformer, manifest=given, extra=extra, report_html="<p>")
    manifest = read_manifest(folder)
    assert manifest["format"] == "surgery.bundle/1" and manifest["actions"] == given["actions"]
    assert set(manifest["versions"]) == {"surgery", "torch", "safetensors"}
    assert set(manifest["files"]) == set(contents(folder)) - {"surgery.json"}
    assert (folder / "tokenizer.model").read_bytes() == b"\x00"


NO_JSON = {"nan": float("nan"), "object": object(), "tensor": torch.ones(1), "bytes": b""}


@pytest.mark.parametrize("bad", [{"x": value} for value in NO_JSON.values()], ids=list(NO_JSON))
def test_a_manifest_that_is_no_json(transformer, tmp_path, bad):
    code, message = fault(lambda: save(tmp_path / "b", transformer, manifest=bad))
    assert code == "S715" and message.startswith("surgery.json cannot be written")
    assert fault(lambda: save(tmp_path / "b", transformer, manifest={}, report=bad))[0] == "S715"
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there(saved):
    assert fault(lambda: load(saved, device="cuda:99"))[0] == "S714"
    assert fault(lambda: load(saved, device="nothing"))[0] == "S714"


def test_a_model_on_two_devices(tmp_path):
    graph = capture(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)), torch.ones(2, 2))
    graph.get_submodule("0").to("meta")
    code, message = fault(lambda: save(tmp_path / "b", graph, manifest={}))
    assert code in ("S709", "S714") and "meta" in message

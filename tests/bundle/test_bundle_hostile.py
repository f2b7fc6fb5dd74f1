"""graph.json from a stranger: every fault is a BundleError with a place and a cure, never a crash, never a surprise."""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.bundle import load
from surgery.bundle.parse import read_graph
from surgery.diagnostics import BundleError


def node(document, name):
    return next(line for line in document["nodes"] if line["name"] == name)


def put(name, /, **changes):
    return lambda document: node(document, name).update(changes)


def drop(name, key):
    return lambda document: node(document, name).pop(key)


def retarget(document):
    node(document, "linear")["target"] = "aten.from_file.default"


def nest(document):
    value = 1
    for _ in range(50):
        value = [value]
    node(document, "gelu")["args"] = [value]


HOSTILE = {
    # what it does: (change, code, words of the message)
    "file operator": (retarget, "S707", "node `linear`.*opens files"),
    "python function": (put("linear", target="os.system"), "S707", "os.system"),
    "injected target": (put("linear", target="aten.linear.default(__import__('os'))"), "S707", "refused"),
    "too many arguments": (put("gelu", args=["%add_3"] * 9), "S708", "node `gelu`.*at most 1 positional"),
    "too few arguments": (put("gelu", args=[]), "S708", "lacks its argument `self`"),
    "wrong type": (put("gelu", kwargs={"approximate": 3}), "S708", "wants str for `approximate`, got 3"),
    "unknown keyword": (put("gelu", kwargs={"x=1);import os": 3}), "S708", "no place for the keyword"),
    "argument twice": (put("gelu", kwargs={"self": "%add_3"}), "S708", "no place for the keyword `self`"),
    "generator": (put("gelu", kwargs={"approximate": {"generator": "x"}}), "S705", "unknown generator"),
    "later node": (put("gelu", args=["%output"]), "S705", "not an earlier node"),
    "itself": (put("gelu", args=["%gelu"]), "S705", "not an earlier node"),
    "bare text": (put("gelu", args=["torch.load('x')"]), "S705", "is no argument"),
    "huge integer": (put("gelu", args=[2**70]), "S705", "64 bits"),
    "deep argument": (nest, "S705", "nested deeper"),
    "two tags": (put("gelu", args=[{"tuple": [], "slice": []}]), "S705", "one key"),
    "bad slice": (put("gelu", args=[{"slice": [1]}]), "S705", "list of three"),
    "unknown dtype": (put("gelu", args=[{"dtype": "__class__"}]), "S705", "unknown dtype"),
    "unknown device": (put("gelu", args=[{"device": "cuda:0'); import os #"}]), "S705", "unknown device"),
    "privateuse device": (put("gelu", args=[{"device": "privateuseone"}]), "S705", "unknown device"),
    "code as a name": (put("gelu", name="x=__import__('os').system('id')#"), "S705", "cannot be a name"),
    "keyword as a name": (put("gelu", name="lambda"), "S705", "cannot be a name"),
    "builtin as a name": (put("gelu", name="print"), "S705", "name is taken"),
    "torch as a name": (put("gelu", name="torch"), "S705", "cannot be a name"),
    "name twice": (put("gelu", name="linear"), "S705", "name is taken"),
    "unicode name": (put("gelu", name="gélu"), "S705", "cannot be a name"),
    "name of a number": (put("gelu", name=7), "S705", "cannot be a name"),
    "unknown key": (put("gelu", code="x"), "S705", "keys of a node"),
    "unknown op": (put("gelu", op="call_method"), "S705", "op is one of"),
    "module call": (put("gelu", op="call_module", target="blocks"), "S705", "op is one of"),
    "no target": (drop("gelu", "target"), "S707", "node `gelu`"),
    "attribute": (put("head_weight", target="forward.__globals__"), "S705", "not in the table"),
    "placeholder with a default": (put("ids", args=[1]), "S705", "takes no arguments"),
    "placeholder code": (put("ids", target="ids=open('/etc/passwd')"), "S705", "cannot be a name"),
    "bad value": (put("gelu", value={"dtype": "float32", "shape": ["s0'"]}), "S705", "a shape is"),
    "bad mark": (put("gelu", marks=[{"clause": 1}]), "S705", "a mark has"),
    "bad module": (put("gelu", module="nowhere"), "S705", "not in `modules`"),
    "no output": (lambda d: d["nodes"].pop(), "S705", "only the last, is the output"),
    "two outputs": (lambda d: d["nodes"].append(d["nodes"][-1]), "S705", "only the last, is the output"),
    "no nodes": (lambda d: d.update(nodes=[]), "S705", "is a list of 1"),
    "nodes as object": (lambda d: d.update(nodes={}), "S705", "is a list of 1"),
    "node as text": (lambda d: d["nodes"].insert(0, "x"), "S705", "keys of a node"),
    "missing section": (lambda d: d.pop("tensors"), "S705", "its keys are"),
    "extra section": (lambda d: d.update(code="x"), "S705", "its keys are"),
    "newer format": (lambda d: d.update(format="surgery.graph/2"), "S706", "surgery.graph/2"),
    "foreign format": (lambda d: d.update(format="onnx"), "S705", "format is not"),
    "input code": (lambda d: d["inputs"].update(names=["ids", "shift=print"]), "S705", "cannot be a name"),
    "input self": (lambda d: d["inputs"].update(names=["ids", "self"]), "S705", "cannot be a name"),
    "input twice": (lambda d: d["inputs"].update(names=["ids", "ids"]), "S705", "name of its own"),
    "input missing": (lambda d: d["inputs"].update(names=["ids"]), "S705", "name of its own"),
    "input keyword": (
        lambda d: d["inputs"].update(structure={"tuple": [{"tuple": []}, {"dict": [["ids", "*"], ["a'b", "*"]]}]}),
        "S705",
        "cannot be a name",
    ),
    "input leaves": (
        lambda d: d["inputs"].update(structure={"tuple": [{"tuple": ["*", {"list": ["*", "*"]}]}, {"dict": []}]}),
        "S705",
        "inputs' structure has 3 leaves",
    ),
    "input shape": (lambda d: d["inputs"].update(structure="*"), "S705", "tuple of a tuple and a dict"),
    "output leaves": (lambda d: d.update(output={"tuple": ["*", "*"]}), "S705", "output's structure has 2"),
    "output container": (lambda d: d.update(output={"set": ["*"]}), "S705", "unknown container"),
    "tensor path": (lambda d: d["tensors"].update({'x");import os;("': d["tensors"]["scale"]}), "S705", "dotted words"),
    "tensor dunder": (lambda d: d["tensors"].update({"__class__": d["tensors"]["scale"]}), "S710", "in no file"),
    "tensor method": (lambda d: d["tensors"].update({"forward.x": {"kind": "buffer", "tied": "scale"}}), "S705", "named"),
    "tensor attribute": (lambda d: d["tensors"].update({"training": {"kind": "buffer", "tied": "scale"}}), "S705", "named"),
    "tensor kind": (lambda d: d["tensors"]["scale"].update(kind="module"), "S705", "kind is one of"),
    "tensor tie": (lambda d: d["tensors"].update({"x": {"kind": "buffer", "tied": "x"}}), "S705", "tied to no earlier"),
    "tensor size": (lambda d: d["tensors"]["embed.weight"].update(shape=[2**40, 2**20]), "S710", "says otherwise"),
    "tensor sizes": (lambda d: d["tensors"]["embed.weight"].update(shape=[-1]), "S705", "a shape is"),
    "tensor strides": (lambda d: d["tensors"]["embed.weight"].update(strides=[10**9, 1]), "S705", "fill its memory"),
    "tensor dtype": (lambda d: d["tensors"]["embed.weight"].update(dtype="int64"), "S705", "cannot have dtype"),
    "tensor missing": (lambda d: d["tensors"].update(x=d["tensors"]["scale"]), "S710", "`x`.*in no file"),
    "tensor unknown": (lambda d: d["tensors"].pop("cache"), "S705", "`cache` is not in the table"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malformed_graph_is_refused(edited, name):
    change, code, words = HOSTILE[name]
    with pytest.raises(BundleError, match=words) as caught:
        load(edited(change), verify=False)
    fault = caught.value.diagnostics[0]
    assert fault.code == code and fault.help


BYTES = {
    "empty": b"",
    "binary": bytes(range(256)),
    "cut": b'{"format": "surgery.graph/1", "nodes": [',
    "list": b"[]",
    "bare nan": b'{"format": NaN}',
    "key twice": b'{"format": "surgery.graph/1", "format": "surgery.graph/1"}',
    "deep": b'{"format":' + b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "long number": b'{"format": ' + b"9" * 10_000 + b"}",
    "lone surrogate": b'{"format": "surgery.graph/1", "nodes": "\\ud800"}',
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_graph_are_refused(edited, name):
    with pytest.raises(BundleError, match=r"graph\.json") as caught:
        load(edited(BYTES[name]), verify=False)
    assert caught.value.diagnostics[0].code == "S705"


def test_a_graph_too_large_is_refused(edited, monkeypatch):
    from surgery.bundle import document, files, parse

    monkeypatch.setattr(parse, "NODES", 3)
    with pytest.raises(BundleError, match="1 to 3 nodes"):
        load(edited(lambda d: d), verify=False)
    monkeypatch.setattr(document, "BYTES", 100)
    with pytest.raises(BundleError, match="larger than"):
        read_graph(b" " * 101, torch.device("cpu"))
    assert files.BYTES > 2**20


def places(value, path=()):
    """Every place in a JSON value."""
    yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in steps:
        yield from places(item, (*path, key))


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([]), st.just({}),
    st.sampled_from(["%ids", "%gelu", "output", "placeholder", "aten.add.Tensor", "*", [[[]]], {"tuple": ["%ids"]}, [None]]),
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_graph_changed_anywhere_is_read_or_refused(saved, data):
    document = json.loads((saved / "graph.json").read_text())
    places_ = list(places(document))
    path = data.draw(st.sampled_from(places_[1:]))
    changed = copy.deepcopy(document)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()) and isinstance(holder, dict | list):
        del holder[path[-1]]
    else:
        holder[path[-1]] = data.draw(JUNK)
    try:
        read_graph(json.dumps(changed).encode(), torch.device("cpu"))
    except BundleError as error:
        assert error.diagnostics[0].code.startswith("S7") and error.diagnostics[0].help

"""The door operations come through: a file, a package, a class of another distribution, a program."""

import sys

import pytest

import surgery
from surgery.diagnostics import SurgeryError
from surgery.language import parse
from surgery.operations import bind, registry

OPERATION = '''
from surgery.operations import Phase, operation, setting


@operation
class {name}:
    """Do something."""

    phase = Phase.SHRINK
    times: int = setting(int, default=1)
'''


@pytest.fixture
def door(tmp_path, monkeypatch):
    """`door(point, {file: text})`: what is installed beside the core."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_OWNERS", dict(registry._OWNERS))
    modules = set(sys.modules)

    def install(value: str, files: dict[str, str], name: str = "plugin") -> None:
        for file, text in files.items():
            path = tmp_path / file
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(registry, "points", lambda: (registry.CORE, registry.Point(name, value)))

    yield install
    for name in set(sys.modules) - modules:
        if name.startswith("other_"):
            del sys.modules[name]


def test_core_verbs():
    assert {"model", "data", "require", "analyze"} <= set(registry.verbs())
    assert registry.find("base") is None and registry.find("registry") is None
    assert registry.owner("model") == "surgery.operations.model:Model"


def test_core_needs_no_metadata(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    assert registry.points.__wrapped__() == (registry.CORE,)


def installed(folder, name: str, points: str):
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(points)


def test_points_of_installed_packages(tmp_path, monkeypatch):
    core = "[surgery.operations]\nsurgery = surgery.operations\n"
    installed(tmp_path / "a", "model_surgery", core)
    installed(tmp_path / "a", "unrelated", "[console_scripts]\nx = y:z\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "no-such-folder")])
    assert registry.points.__wrapped__() == (registry.CORE,)
    installed(tmp_path / "b", "shaving", "[surgery.operations]\nshave = shaving:Shave\nmore = shaving.more\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), str(tmp_path / "b")])
    assert registry.points.__wrapped__() == (
        registry.CORE,
        registry.Point("more", "shaving.more"),
        registry.Point("shave", "shaving:Shave"),
    )


def test_a_module(door):
    door("other_module", {"other_module.py": OPERATION.format(name="Shave")})
    assert registry.find("shave").verb == "shave"
    assert bind(parse("shave times=3").clauses[0]).operation.times == 3
    assert "shave" in registry.verbs()


def test_a_class(door):
    door("other_class:Trim", {"other_class.py": OPERATION.format(name="Trim")}, name="trim")
    assert "other_class" not in sys.modules
    assert registry.find("model") and "other_class" not in sys.modules
    assert registry.find("trim").verb == "trim"


def test_a_package_loads_by_the_module_named_like_the_verb(door):
    door(
        "other_package",
        {
            "other_package/__init__.py": "",
            "other_package/snip.py": OPERATION.format(name="Snip"),
            "other_package/fell_trees.py": OPERATION.format(name="FellTrees"),
        },
    )
    assert registry.find("snip").verb == "snip"
    assert "other_package.fell_trees" not in sys.modules
    assert {"snip", "fell-trees"} <= set(registry.verbs())


def test_two_owners_are_an_error_that_names_both(door):
    door("other_double", {"other_double.py": OPERATION.format(name="Model")})
    with pytest.raises(SurgeryError) as error:
        registry.find("model")
    (fault,) = error.value.diagnostics
    assert fault.code == "S120"
    assert "surgery.operations.model:Model" in fault.notes[0] and "other_double:Model" in fault.notes[0]
    assert [one.code for one in bind(parse("model zoo:x").clauses[0]).faults] == ["S120"]


@pytest.mark.parametrize(
    ("value", "files"),
    [
        ("other_broken", {"other_broken.py": "import no_such_module_at_all"}),
        ("other_missing", {}),
        ("other_empty:Nothing", {"other_empty.py": ""}),
    ],
)
def test_a_broken_plugin_is_named(door, value, files):
    door(value, files)
    with pytest.raises(SurgeryError) as error:
        registry.verbs()
    assert error.value.diagnostics[0].code == "S121"
    assert "plugin" in str(error.value)


def test_from_a_program(monkeypatch):
    monkeypatch.setattr(registry, "_OWNERS", dict(registry._OWNERS))

    def written():
        @surgery.operation
        class Carve:
            """Do something."""

            phase = surgery.operations.Phase.SHRINK

        return Carve

    first = written()
    assert registry.find("carve") is first
    assert registry.find("carve") is first and written() is registry.find("carve") is not first
    assert surgery.check("carve").operations[0].verb == "carve"


def test_misspelt_verb_knows_the_plugins(door):
    door("other_near", {"other_near.py": OPERATION.format(name="Shave")})
    (fault,) = bind(parse("shaev").clauses[0]).faults
    assert (fault.code, fault.help) == ("S103", "did you mean `shave`?")

"""The public face: what `dir` shows, what a type checker sees, what is made by name."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unleak
from unleak.core.presets import Presets
from unleak.core.result import Result
from unleak.errors import BadInput
from unleak.report.catalogue import TABLES

FACE = Path(unleak.__file__)
VERBS = """attach generate diagnose repair tokens lint edit regions scan calibrate guard audit doctor maps"""


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'diffusers', 'transformers', 'jinja2'}"
    code = f"import sys, unleak; dir(unleak); unleak.errors; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_type_checkers_see_what_there_is() -> None:
    """The imports under TYPE_CHECKING and the lazy table name the same things in the same modules."""
    seen = {}
    for node in ast.walk(ast.parse(FACE.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unleak"):
            seen |= {alias.name: node.module for alias in node.names if alias.asname == alias.name}
    rooms = {name for name, module in seen.items() if module == "unleak"}
    assert {name: module for name, module in seen.items() if name not in rooms} == unleak._MODULES
    assert rooms | {"regions"} == set(unleak._ROOMS)
    assert all(getattr(unleak, name) is not None for name in unleak.__all__)
    assert (FACE.parent / "py.typed").is_file() and unleak.metrics.__name__ == "unleak.metrics"
    with pytest.raises(AttributeError, match="nothing_here"):
        unleak.nothing_here  # noqa: B018


def test_dir_shows_four_groups_in_order() -> None:
    names = unleak.__dir__()  # `dir` itself sorts
    assert names[: 1 + len(VERBS.split())] == ["__version__", *VERBS.split()]
    order = [names.index(name) for name in ("attach", "Patch", "Guard", "Result", "Scan", "Intervention", "KeyScale")]
    assert order == sorted(order)


def test_every_preset_is_public_and_is_made_by_name() -> None:
    every = [(table, preset) for table in TABLES for preset in table.values()]
    assert {preset.method.__name__ for _, preset in every} <= set(dir(unleak))
    assert all(getattr(unleak, preset.method.__name__) is preset.method for _, preset in every)
    names = [preset.name for _, preset in every]
    assert len(set(names)) == len(names) == sum(map(len, TABLES)) and all(isinstance(t, Presets) for t in TABLES)
    assert unleak.preset("guard", tau=2.0) == unleak.Guard(tau=2.0)
    assert unleak.preset("patch", "mouse", "bat", eos_pads="keep") == unleak.Patch(
        "mouse", others="bat", eos_pads="keep"
    )
    with pytest.raises(BadInput, match="Choose from"):
        unleak.preset("gard")
    with pytest.raises(BadInput, match="tau"):
        unleak.preset("guard", tua=2.0)


def test_methods_say_source_parameters_and_layouts() -> None:
    for table in TABLES:
        for name, preset in table.items():
            said = str(unleak.methods(name))
            assert preset.summary in said and preset.source in said and " or ".join(preset.layouts) in said
    assert unleak.methods("structure").presets["repair"][0].layouts == ("cross-attention",)
    assert unleak.methods("deleaker").presets["repair"][0].layouts == ("joint attention",)
    assert [*unleak.methods("mitigation").presets] == ["mitigation"]
    with pytest.raises(BadInput, match="Choose from"):
        unleak.methods("nothing")


def test_every_verb_but_attach_gives_a_result() -> None:
    results = [
        one for name in dir(unleak) if isinstance(one := getattr(unleak, name), type) and issubclass(one, Result)
    ]
    assert len(results) == len(VERBS.split()) + 1  # of every verb but attach, of `methods`, and their base

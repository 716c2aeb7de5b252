"""Presets: named methods, their parameters, and how a command line sets them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from unleak.core.presets import Preset, Presets
from unleak.errors import BadInput


@dataclass(frozen=True)
class Method:
    items: tuple[str, ...] = ()
    strength: float = 1.0
    steps: int = 3
    on: bool = True
    limit: float | None = None
    where: str = "all"
    layers: tuple[int, ...] = (1,)


PRESET = Preset("some", Method, "Does something.", "Someone (2026), eq. 3", {"strength": 2.0}, hidden=("items",))


def test_parameters_are_the_fields_with_the_presets_own_values():
    shown = {p.name: p.default for p in PRESET.parameters}
    assert shown == {"strength": 2.0, "steps": 3, "on": True, "limit": None, "where": "all", "layers": (1,)}


def test_make_fills_hidden_fields_and_changes_parameters():
    assert PRESET.make(("cat",), steps=5) == Method(("cat",), 2.0, 5)
    with pytest.raises(BadInput, match="did you mean 'steps'"):
        PRESET.make(step=5)
    with pytest.raises(BadInput, match=r"no parameter of .* is called 'items'"):
        PRESET.make(items=())


def test_settings_of_a_command_line_have_the_parameters_types():
    text = ["strength=1", "steps=4", "on=false", "limit=null", "where=7", "layers=[1, 2]"]
    assert PRESET.parse(text) == {
        "strength": 1, "steps": 4, "on": False, "limit": None, "where": "7", "layers": (1, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong", ["steps", "=3", "steps=many", "steps=2.5", "on=1", "strength=true", "strength=NaN", "size=3"]
)
def test_a_setting_that_does_not_fit_is_refused(wrong):
    with pytest.raises(BadInput):
        PRESET.parse([wrong])


def test_a_table_names_what_there_is():
    table = Presets("repair", [PRESET])
    assert list(table) == ["some"] and table["some"] is PRESET and "other" not in table
    with pytest.raises(BadInput, match=r"no repair is called 'sone'; did you mean 'some'.*Choose from some"):
        table["sone"]

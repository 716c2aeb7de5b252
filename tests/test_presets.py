"""Presets: named methods, their parameters, and how a command line sets them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from unleak.core.intervention import ALL, SiteLike, Window
from unleak.core.presets import Preset, Presets
from unleak.errors import BadInput
from unleak.text.subsets import Subset

if TYPE_CHECKING:
    from unleak.copies.methods.neurons import Neurons


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


WHOLE, NO_ROWS = Window(), Subset()


@dataclass(frozen=True)
class Placed:
    window: Window = WHOLE
    sites: SiteLike = ALL
    reads: Any = None
    carriers: Subset = NO_ROWS
    neurons: Neurons | None = None


@pytest.mark.parametrize(("text", "value"), [
    ("window=0:0.5", Window(0, 0.5)), ("window=[0.25, 1]", Window(0.25, 1)), ("sites=mid_block*", "mid_block*"),
    ('sites=["mid*", "up*"]', ("mid*", "up*")), ("reads=2.5", 2.5), ("reads=some", "some"),
    ('carriers={"kinds": ["eos"]}', {"kinds": ["eos"]}), ("neurons=null", None),
])  # fmt: skip
def test_settings_of_other_types_are_read(text, value):
    assert Preset("placed", Placed, "Is somewhere.", "Someone").parse([text]) == {text.partition("=")[0]: value}


@pytest.mark.parametrize(
    "wrong", ["window=0.5", "window=a:b", "window=0:1:2", "window=1:0", "window=[0]", "carriers=eos", "neurons=3"]
)
def test_what_is_no_value_of_another_type_is_refused(wrong):
    with pytest.raises(BadInput):
        Preset("placed", Placed, "Is somewhere.", "Someone").parse([wrong])


def test_a_table_names_what_there_is():
    table = Presets("repair", [PRESET])
    assert list(table) == ["some"] and table["some"] is PRESET and "other" not in table
    with pytest.raises(BadInput, match=r"no repair is called 'sone'; did you mean 'some'.*Choose from some"):
        table["sone"]

"""Every command with any arguments: a documented status, no traceback, inputs as they were, no half of a file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest
from harness import COMMANDS, LONG, MODEL, OUTPUTS, contents, examples, fuzz_folder, nothing_half, run, tiny_models
from hypothesis import given
from hypothesis import strategies as st


def values(parameter: Any) -> st.SearchStrategy[str]:
    """What may be given to a parameter: by its type, and mostly what is usual for its name."""
    usual = harness.USUAL.get(parameter.name)
    by_type = of_type(parameter)
    return st.one_of(*[st.sampled_from(usual)] * 3, by_type) if usual else by_type


def of_type(parameter: Any) -> st.SearchStrategy[str]:
    kind = str(getattr(getattr(parameter, "type_descriptor", None), "annotation", "str"))
    if parameter.name in OUTPUTS:
        return harness.writes
    if "Path" in kind:
        return harness.reads
    if "int" in kind:
        low = getattr(parameter, "min", None) or 0
        near = [str(n) for n in (low - 1, low, low + 1, 2, -1, 0, 2**63, 2**64)]
        return st.sampled_from([*near, "64", "x", "1.5", "", "1e3"])
    if "float" in kind:
        return st.sampled_from(["0", "1", "0.5", "-1", "3.0", "nan", "inf", "1e400", "-0.0", "x", ""])
    return st.one_of(harness.text, st.sampled_from([*harness.inputs()]))


@st.composite
def arguments(draw: Callable[..., Any], name: tuple[str, ...]) -> tuple[list[str], set[str], set[str]]:
    """(arguments, values of outputs, all other values)."""
    command, given, outputs, others = COMMANDS[name], [], set(), set()
    options = [p for p in command.params if p.opts[0].startswith("-") and "help" not in p.name]
    chosen = draw(st.lists(st.sampled_from(options), max_size=5, unique_by=lambda p: p.name)) if options else []
    for parameter in [p for p in command.params if p not in options] + chosen:
        if "help" in parameter.name:
            continue
        flag = getattr(parameter, "is_flag", False)
        value = None if flag else draw(values(parameter))
        if parameter in options:
            given.append(draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts])))
        if value is not None:
            given.append(value)
            (outputs if parameter.name in OUTPUTS else others).add(value)
    for old in (
        draw(st.lists(st.sampled_from(sorted(command.old)), max_size=1)) if getattr(command, "old", None) else []
    ):
        given += [old] if "=" in old else [old, draw(harness.text)]
    for parameter in command.params:
        if parameter.name == "model" and parameter not in chosen and draw(st.booleans()):
            given += ["-m", MODEL]
        if parameter.name in OUTPUTS and parameter not in chosen and parameter.default is not None:
            outputs.add(str(parameter.default))
    return given, outputs, others


def real(names: set[str]) -> set[Path]:
    """The files that these names stand for, also behind an "=" and an "@"."""
    every = {piece for name in names for piece in (name, *name.replace("=", "@").split("@")) if "\x00" not in piece}
    return {Path(os.path.realpath(name)) for name in every if name}


@pytest.mark.parametrize("name", COMMANDS, ids="-".join)
def test_any_arguments_end_as_documented_and_leave_inputs_alone(name: tuple[str, ...]) -> None:
    @examples(4, 0.43 / len(COMMANDS))
    @given(arguments(name), st.sampled_from([b"", b"a [mouse] and a [laptop]\n", b"\xff\xfe\x00"]))
    def check(drawn: tuple[list[str], set[str], set[str]], stdin: bytes) -> None:
        given, outputs, others = drawn
        with fuzz_folder() as folder, tiny_models(name[0] not in LONG):
            before = contents(folder)
            run(*name, *given, stdin=stdin)
            after = contents(folder)
            nothing_half(before, after)
            may_change = real(outputs) - real(others)
            changed = {n for n, data in before.items() if after.get(n) != data}
            assert all((folder / n).resolve() in may_change for n in changed), (changed, given)
            roots = [str(path.with_suffix("")) for path in real(outputs)]
            new = [str((folder / n).resolve()) for n in after.keys() - before.keys()]
            parents = {str(parent) for path in real(outputs) for parent in path.parents}  # are made with an output
            assert all(n in parents or any(n.startswith(root) for root in roots) for n in new), (new, given)

    check()

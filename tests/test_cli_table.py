"""The page of all commands is up to date, and a flag means the same in every command that has it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from unleak.cli import table

COMMANDS = table.commands()


def test_the_page_is_what_the_command_writes() -> None:
    page = Path(__file__).parent.parent / "docs" / "cli.md"
    assert page.read_text("utf-8") == table.page(), "write it again: python -m unleak.cli.table > docs/cli.md"


def test_a_flag_has_one_help_and_one_form_everywhere() -> None:
    said = defaultdict(set)
    for one in COMMANDS.values():
        for flag, option in table.options(one).items():
            said[flag].add((option.help, option.is_flag, option.multiple))
    assert {flag: texts for flag, texts in said.items() if len(texts) > 1} == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_and_argument_is_explained(name: str) -> None:
    unexplained = [p.name for p in COMMANDS[name].params if not getattr(p, "help", None)]
    assert not unexplained and COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_where_a_model_is_named_one_can_say_how_it_is_loaded(name: str) -> None:
    flags = table.options(COMMANDS[name]).keys()
    assert ("-m, --model" in flags) == ("--dtype" in flags) == ("--offload" in flags)
    assert "-m, --model" not in flags or "--device" in flags


def test_no_earlier_spelling_is_an_option_still() -> None:
    for name, one in COMMANDS.items():
        spelled = {flag for option in one.params for flag in option.opts}
        assert not spelled & one.old.keys(), name
        assert all(now.split()[0] in spelled for now in one.old.values()), name

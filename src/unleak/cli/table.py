"""All commands and their options side by side: ``python -m unleak.cli.table > docs/cli.md`` writes the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from unleak.cli import app

HEAD = """# The command line

Written by `python -m unleak.cli.table > docs/cli.md`.

Data goes to stdout, progress and notes to stderr. A flag means the same in every command that has it.

| exit status | |
|---|---|
| 0 | done |
| 1 | failed: full disk, no memory, output removed while it was written; quietly where nobody reads stdout any more |
| 2 | bad use: options, files, prompts that cannot be used; an output that is an input; a gate that looked at nothing |
| 3 | findings over the limit of `--fail-over` |
| 4 | unsupported model |
| 130 | interrupted (Ctrl-C) |
| 143, 129 | ended by SIGTERM or SIGHUP; as after Ctrl-C, nothing half-written is left |

Every error is one line on stderr. No output may be an input or another output, whatever its path looks like. A file is
replaced as a whole and keeps its mode; a link is followed; a device or a pipe is written through, and refused by
commands that resume. What a file or an argument says is shown with control characters escaped.
"""


def commands() -> dict[str, Any]:
    """Every command by what is typed after `unleak`, in the order of the help."""
    return dict(_walk(get_command(app), ""))


def _walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from _walk(one, f"{prefix}{name} ")
        else:
            yield prefix + name, one


def options(one: Any) -> dict[str, Any]:
    """The options of a command by flag; a short spelling stands with the long one: "-m, --model"."""
    by_flag = {}
    for option in one.params:
        if option.param_type_name == "option" and option.name != "help":
            short = [flag for flag in option.opts if not flag.startswith("--")]
            for flag in option.opts:
                if flag not in short:
                    by_flag[", ".join([*short, flag])] = option
    return by_flag


def page() -> str:
    """The page, in Markdown."""
    by_name = commands()
    return "\n".join([HEAD, *_overview(by_name), "", *_flags(by_name), "", *_earlier(by_name), ""])


def _overview(by_name: dict[str, Any]) -> Iterator[str]:
    yield "| command | |"
    yield "|---|---|"
    for name, one in by_name.items():
        given = [p.name.upper() for p in one.params if p.param_type_name == "argument"]
        yield f"| `{' '.join(['unleak', name, *given])}` | {_cell(one.help.splitlines()[0])} |"


def _flags(by_name: dict[str, Any]) -> Iterator[str]:
    """A row for each flag, a column for each command; a cell holds the default."""
    rows: dict[str, dict[str, Any]] = {}
    for name, one in by_name.items():
        for flag, option in options(one).items():
            rows.setdefault(flag, {})[name] = option
    order = sorted(rows, key=lambda flag: -len(rows[flag]))
    yield "A cell holds the default: `•` where the flag is there and has none, `!` where it must be given."
    yield ""
    yield f"| flag | {' | '.join(by_name)} | what it means |"
    yield "|---" * (len(by_name) + 2) + "|"
    for flag in order:
        cells = [_default(rows[flag][name]) if name in rows[flag] else "" for name in by_name]
        meaning = next(iter(rows[flag].values())).help
        yield f"| `{flag}` | {' | '.join(cells)} | {_cell(meaning)} |"


def _default(option: Any) -> str:
    if option.required:
        return "`!`"
    if option.default is None or option.is_flag or option.multiple:
        return "`•`"
    value = option.default.as_posix() if isinstance(option.default, Path) else option.default
    return f"`{value}`"


def _earlier(by_name: dict[str, Any]) -> Iterator[str]:
    yield "Earlier spellings keep working, with a note:"
    yield ""
    yield "| command | earlier | now |"
    yield "|---|---|---|"
    for name, one in by_name.items():
        for earlier, now in one.old.items():
            yield f"| {name} | `{earlier.replace('=', ' ')}` | `{now.format('...')}` |"


def _cell(text: str | None) -> str:
    """Text that a table can hold."""
    return " ".join((text or "").replace("\\[", "[").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")

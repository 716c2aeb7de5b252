"""What every command of the command line needs: errors as one line, progress, JSON.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress

from unleak.errors import BadInput, PromptTruncated, UnleakError

err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def say(kind: str, text: object, style: str = "yellow") -> None:
    """One line on stderr; the text comes from anywhere, so it is no markup, and is cut where it is absurdly long."""
    line = " ".join(str(text).split())
    line = line if len(line) <= 1500 else f"{line[:1000]} ... {line[-400:]}"
    err.print(f"[{style}]{kind}[/{style}]: ", end="")
    err.print(line, markup=False)


@contextmanager
def errors() -> Iterator[None]:
    """Typed errors become one line on stderr and their exit status, warnings a note; Ctrl-C is 130."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say("note", message)
        try:
            yield
        except UnleakError as e:
            say(type(e).__name__, e, "red")
            raise typer.Exit(e.exit_code) from None
        except KeyboardInterrupt:
            err.print("interrupted; nothing half-written was left")
            raise typer.Exit(130) from None


@contextmanager
def ticking(title: str, total: int | None, so_far: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, of `total` things if that is known.

    Yields the function to tell how many more are done, or, with `so_far`, how many are done in all.
    """
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda n: bar.update(task, completed=n) if so_far else bar.advance(task, n)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr for every part of a benchmark; yields what tells (part, done, total)."""
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tick(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        yield tick


def number(text: str, option: str) -> float:
    """A finite number of an option. Raises BadInput."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise BadInput(f"{option} {text!r}: give a finite number")
    return value


def prompts_of(file: Path, column: str | None = None) -> list[str]:
    """Every usable prompt of a file once; the others are noted. Raises BadInput if none is."""
    from unleak.files.prompt_file import read_prompts

    lines = list(read_prompts(file, column))
    bad = [line for line in lines if line.error is not None]
    if bad:
        say("note", f"{file}: {len(bad)} lines cannot be used, such as line {bad[0].number}: {bad[0].error}")
    prompts = list(dict.fromkeys(line.text for line in lines if line.error is None))
    if not prompts:
        raise BadInput(f"{file} holds no prompt")
    return prompts


def fitting(prompts: list[str], check: Callable[[str], None]) -> list[str]:
    """Those that an encoder reads to their end; the others are noted. Raises BadInput if none is left."""
    readable, error = [], None
    for prompt in prompts:
        try:
            check(prompt)
            readable.append(prompt)
        except PromptTruncated as e:
            error = e
    if error is not None:
        say("note", f"{len(prompts) - len(readable)} prompts are left out: {error}")
    if not readable:
        raise BadInput("no prompt is left")
    return readable


def quiet_libraries() -> None:
    """Turn off what diffusers and transformers say while they are imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def read_lines(file: Path, option: str) -> list[str]:
    """The lines of a text file that are not blank. Raises BadInput."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise BadInput(f"{option} {str(file)!r} cannot be read: {e}") from e
    return [line for line in lines if line]


def tolerant() -> None:
    """Let stdout escape what its encoding cannot hold, instead of failing after the work is done."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def emit(data: Mapping[str, Any], to: str | None) -> None:
    """JSON to a file (atomically) or, for `-`, to stdout."""
    from unleak.files.atomic import write_atomic

    if to == "-":
        escaped = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") != "utf8"
        print(json.dumps(data, indent=1, ensure_ascii=escaped))
    elif to is not None:
        write_atomic(Path(to), json.dumps(data, indent=1, ensure_ascii=False) + "\n")

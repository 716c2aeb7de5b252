"""What every command of the command line needs: errors as one line, progress, text and JSON.

Data goes to stdout, everything else to stderr. Both show what acts on a terminal as text, see `errors.printable`.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from unleak.errors import BadInput, PromptTruncated, in_words, printable

UsageError: Any = typer.BadParameter.__base__
"""What the parser raises; typer does not name it."""
err = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def say(kind: str, text: object, style: str = "yellow") -> None:
    """One line on stderr; the text comes from anywhere, so it is no markup, and is cut where it is absurdly long."""
    line = printable(" ".join(str(text).split()))
    line = line if len(line) <= 1500 else f"{line[:1000]} ... {line[-400:]}"
    with suppress(OSError):  # nobody reads stderr: that changes no status
        err.print(f"[{style}]{kind}[/{style}]: ", end="")
        err.print(line, markup=False)


def note(text: object) -> None:
    """A note on stderr: what a user should know."""
    say("note", text)


def show(*lines: object) -> None:
    """Lines on stdout."""
    for line in lines:
        print(printable(line))


def show_row(*fields: object) -> None:
    """One row of a table on stdout: fields with a tab between them and no other white space than a blank."""
    show("\t".join(" ".join(str(field).split()) for field in fields))


def show_json(data: Mapping[str, Any], indent: int | None = None) -> None:
    """JSON on stdout, in ASCII where its encoding is not UTF-8."""
    escaped = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") != "utf8"
    show(json.dumps(data, indent=indent, ensure_ascii=escaped))


class Terminated(KeyboardInterrupt):
    """A signal asked the process to end; it ends as after Ctrl-C. `number`: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated in the block, where they would have ended the process at once."""
    here = threading.current_thread() is threading.main_thread()
    ending = [n for n in (signal.SIGTERM, getattr(signal, "SIGHUP", None)) if n is not None]
    ours = [n for n in ending if here and signal.getsignal(n) is signal.SIG_DFL]

    def end(number: int, _: object) -> None:
        raise Terminated(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def errors() -> Iterator[None]:
    """Errors become one line on stderr and their exit status, warnings a note.

    Ends with the `exit_code` of a typed error; 2 after bad options, text that is none, or a number too large; 1 after
    an error of the operating system, too little memory, or a nesting too deep; 1 and no line where nobody reads the
    output any more; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP. What else is raised is a mistake in the
    program and stays as it is.
    """
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say("note", message)
        try:
            if sys.stdout is None:
                raise BadInput("stdout is closed: send it to a file or to /dev/null")
            with _terminable():
                yield
            sys.stdout.flush()
        except (typer.Exit, SystemExit):
            raise
        except BaseException as e:
            status, kind, text = _in_words(e)
            if status is None:
                raise
            if text:
                say(kind, text, "red")
            _silence_stdout()
            raise typer.Exit(status) from None


def _in_words(e: BaseException) -> tuple[int | None, str, str]:
    """Exit status, what kind of error, and the line; no status for what nobody has foreseen."""
    kind = type(e).__name__
    if isinstance(e, Terminated):
        return 128 + e.number, "terminated", "nothing half-written was left"
    if isinstance(e, KeyboardInterrupt | typer.Abort):
        return 130, "interrupted", "nothing half-written was left"
    if isinstance(e, UsageError):
        where = e.ctx.command_path if e.ctx is not None else "unleak"
        told = e.format_message().rstrip(".")
        return e.exit_code, "BadInput", f"{told}: see {where} --help" if told else ""
    if isinstance(e, BrokenPipeError):
        return 1, kind, ""
    if (known := in_words(e)) is not None:
        return known
    return None, kind, ""


def _silence_stdout() -> None:
    """What stdout still holds and cannot take is dropped, so that the end of the process says nothing more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
                tasks[name] = bar.add_task(escape(printable(name)), total=total)
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
    """Every usable prompt of a file once; the others are noted. Raises BadInput if none is.

    `column`: of those of several files that have columns.
    """
    from unleak.files.prompt_file import format_of, read_prompts

    lines = list(read_prompts(file, None if format_of(file) == "text" else column))
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


def tolerant() -> None:
    """Let stdout escape what its encoding cannot hold, instead of failing after the work is done."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def emit(data: Mapping[str, Any], to: str | None) -> None:
    """JSON to a file (atomically) or, for `-`, to stdout."""
    from unleak.files.atomic import write_atomic

    if to == "-":
        show_json(data, indent=1)
    elif to is not None:
        write_atomic(Path(to), json.dumps(data, indent=1, ensure_ascii=False) + "\n")

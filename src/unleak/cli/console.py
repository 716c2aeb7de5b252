"""What every command of the command line needs: errors as one line, progress, checked paths, JSON.

Data goes to stdout, everything else to stderr.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
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
    found = list(dict.fromkeys(line.text for line in lines if line.error is None))
    if not found:
        raise BadInput(f"{file} holds no prompt")
    return found


def fitting(prompts: list[str], check: Callable[[str], None]) -> list[str]:
    """Those that an encoder reads to their end; the others are noted. Raises BadInput if none is left."""
    found, error = [], None
    for prompt in prompts:
        try:
            check(prompt)
            found.append(prompt)
        except PromptTruncated as e:
            error = e
    if error is not None:
        say("note", f"{len(prompts) - len(found)} prompts are left out: {error}")
    if not found:
        raise BadInput("no prompt is left")
    return found


def open_model(model: str, text_only: bool = False) -> Any:
    """The pipeline (or only its text side), with the libraries' own chatter off."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    try:
        model.encode("utf-8")
    except UnicodeEncodeError:
        raise BadInput(f"the model {model!r} is not valid UTF-8 text; rename it") from None
    from unleak import models

    with err.status("loading the model"):
        return models.load(model, text_only=text_only)


def call_arguments(model: str, **given: Any) -> dict[str, Any]:
    """The model's recommended call arguments, overridden by what the user gave. Raises BadInput.

    A `guidance_scale` goes to the argument that means it for this model.
    """
    from unleak import models
    from unleak.drawing.generate import check_call

    names = {"guidance_scale": models.guidance(model)}
    call = {**models.settings(model), **{names.get(k, k): v for k, v in given.items() if v is not None}}
    check_call(call)
    return call


def judge_for(model: str, size: tuple[int, int] | None, named: str | None = None) -> Any:
    """The judge that the user names, or else the embedded world's for the embedded models; others have none."""
    from unleak import models

    if named is not None:
        from unleak.judges.load import load_judge

        with err.status("loading the judge"):
            return load_judge(named)
    if model not in models.EMBEDDED:
        return None
    from unleak.judges.glyphs import glyph_judge

    judge = glyph_judge()
    if size != (judge.world.image,) * 2:
        say("note", f"not judged: the judge reads images of {judge.world.image}x{judge.world.image} pixels")
        return None
    return judge


def world_items(model: str) -> tuple[Any, ...]:
    """The words of the embedded world, polysemes with both their senses, for the embedded models; others know none."""
    from unleak import models

    if model not in models.EMBEDDED:
        return ()
    from unleak.text.items import Item
    from unleak.world import load

    world = load()
    senses = {word: f"{p.default_name}|{p.other_name}" for word, p in world.polysemes.items()}
    return tuple(Item(word, sense=senses.get(word)) for word in world.words)


def known_items(model: str, prompt: str) -> list[str] | None:
    """The words of the embedded world that stand in the prompt, for the embedded models; None: look for brackets."""
    from unleak import models

    if model not in models.EMBEDDED or "[" in prompt:
        return None
    from unleak.text.items import known
    from unleak.world import load

    return [str(item) for item in known(prompt, load().words)] or None


def known_senses(model: str) -> dict[str, list[str]]:
    """The other senses of the embedded world's words, for the embedded models."""
    from unleak import models

    if model not in models.EMBEDDED:
        return {}
    from unleak.world import load

    return {word: [p.default_name, p.other_name] for word, p in load().polysemes.items()}


def check_folder(folder: Path) -> Path:
    """The folder, which can be made and written to; nothing is made yet. Raises BadInput."""
    try:
        str(folder).encode("utf-8")
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        with tempfile.TemporaryFile(dir=there):
            return folder
    except UnicodeEncodeError:
        raise BadInput(f"the path {str(folder)!r} is not valid UTF-8 text; choose another") from None
    except OSError as e:
        raise BadInput(f"cannot write to the folder {folder}: {e.strerror or e}; choose another with -o") from e


def check_file(file: Path | str | None, option: str, out: Path | None = None) -> None:
    """A file of `--json` or `--html` can be written: its folder is there, or is `out`. Raises BadInput."""
    if file is None or (file == "-" and option == "--json"):
        return
    path = Path(file)
    if str(file) in ("", "-") or path.is_dir() or (out is not None and path.absolute() == out.absolute()):
        raise BadInput(f"{option} {str(file)!r} is no file name: write {option} FILE")
    if not path.parent.is_dir() and (out is None or path.parent.absolute() != out.absolute()):
        raise BadInput(f"{option} {str(file)!r}: there is no folder {str(path.parent)!r}; make it first")
    check_folder(path.parent)


def check_outputs(out: Path, json_file: str | None, html: Path | None) -> Path:
    """The output folder, if it, `--json` and `--html` can all be written. Raises BadInput."""
    check_folder(out)
    check_file(json_file, "--json", out)
    check_file(html, "--html", out)
    if html is not None and json_file == str(html):
        raise BadInput(f"--json and --html both write {json_file!r}: name two files")
    return out


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


def emit(data: dict[str, Any], to: str | None) -> None:
    """JSON to a file (atomically) or, for `-`, to stdout."""
    from unleak.files.atomic import write_atomic

    if to == "-":
        escaped = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") != "utf8"
        print(json.dumps(data, indent=1, ensure_ascii=escaped))
    elif to is not None:
        write_atomic(Path(to), json.dumps(data, indent=1, ensure_ascii=False) + "\n")

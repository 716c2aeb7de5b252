"""What every command does around its one verb: parse the shared options, check the outputs, open the model, show.

A command is a function of a `Command` and of its own parameters::

    @command(*MODEL, "seeds", *CALL, *OUTPUT)
    def generate(cmd: Command, prompt: str) -> None:
        cmd.show(unleak.generate(cmd.open(), prompt, seeds=cmd.numbers, call=cmd.call))
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand

from unleak.cli.console import emit, err, note, quiet_libraries, say, show
from unleak.cli.options import SHARED, app
from unleak.core.presets import Presets
from unleak.core.result import Result
from unleak.errors import BadInput
from unleak.files.outputs import Door, Reads, Writes
from unleak.judges.embedded import embedded_judge


@dataclass
class Command:
    """The shared options as they were given, see `options.SHARED`; None where the command has no such option.

    Raises BadInput: --html names no page.
    """

    model: str = "emoji-sd"
    device: str | None = None
    dtype: str | None = None
    offload: str = "none"
    seeds: str = ""
    steps: int | None = None
    guidance: float | None = None
    size: str | None = None
    height: int | None = None
    width: int | None = None
    judge: str | None = None
    folder: Any = None
    out: Any = None
    json: str | None = None
    html: Path | None = None
    fail_over: str | None = None

    def __post_init__(self) -> None:
        if self.html is not None and self.html.suffix.lower() != ".html":
            raise BadInput(f"--html {str(self.html)!r} is no page: name a file that ends in .html")

    @cached_property
    def numbers(self) -> list[int]:
        """The seeds. Raises BadInput."""
        from unleak.drawing.generate import parse_seeds

        return parse_seeds(self.seeds)

    @property
    def numbers_or_auto(self) -> list[int] | str:
        """The seeds, or "auto": as many as the verdicts need. Raises BadInput."""
        from unleak.words.diagnosis.more_seeds import AUTO

        return AUTO if self.seeds == AUTO else self.numbers

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Height and width, if they are given. Raises BadInput."""
        if self.size is not None:
            if self.height is not None or self.width is not None:
                raise BadInput("--size gives height and width: leave --height and --width out")
            return parse_size(self.size)
        if self.height is None and self.width is None:
            return None
        if self.height is None or self.width is None:
            raise BadInput("only one of --height and --width is given: give both, or --size")
        return self.height, self.width

    @cached_property
    def call(self) -> dict[str, Any]:
        """The model's recommended call arguments, overridden by what is given. Raises BadInput.

        The guidance scale goes to the argument that means it for this model.
        """
        from unleak import models
        from unleak.drawing.generate import check_call

        height, width = self.pixels or (None, None)
        given = {"num_inference_steps": self.steps, models.guidance(self.model): self.guidance,
                 "height": height, "width": width}  # fmt: skip
        call = {**models.settings(self.model), **{k: v for k, v in given.items() if v is not None}}
        check_call(call)
        return call

    @property
    def where(self) -> list[str]:
        """The options that say where the model runs and who judges, as they were given."""
        offload = None if self.offload == "none" else self.offload
        given = {"--device": self.device, "--dtype": self.dtype, "--offload": offload, "--judge": self.judge}
        return [word for flag, value in given.items() if value is not None for word in (flag, value)]

    def open(self, text_only: bool = False) -> Any:
        """The pipeline (or only its text side), with the libraries' own chatter off."""
        from unleak import models

        quiet_libraries()
        try:
            self.model.encode("utf-8")
        except UnicodeEncodeError:
            raise BadInput(f"the model {self.model!r} is not valid UTF-8 text; rename it") from None
        with err.status("loading the model"):
            return models.load(
                self.model, dtype=self.dtype, device=self.device, offload=self.offload, text_only=text_only
            )

    def judge_of(self, size: tuple[int, int] | None) -> Any:
        """The judge that is named, or else the embedded world's for the embedded models; others have none.

        `size`: (height, width) in pixels of what it is to look at.
        """
        if self.judge is None:
            return embedded_judge(self.model, size, note)
        from unleak.judges.load import load_judge

        with err.status("loading the judge"):
            return load_judge(self.judge, self.device)

    def looks(self, pipe: Any, without: str | None = None) -> Any:
        """The judge of what the pipeline draws, if there is one; `without` is noted where there is none."""
        from unleak.drawing.generate import image_size

        judge = self.judge_of(image_size(pipe, self.call))
        if judge is None and without is not None:
            say("note", without)
        return judge

    def show(self, result: Result, *files: object) -> None:
        """Save the result where it is wanted, and print it with the files that say most, unless stdout has the JSON."""
        if self.folder is not None:
            result.save(f"{self.folder}/")
        if self.html is not None:
            result.save(self.html)
        self.put(result.to_dict(), [str(result), *map(str, files)])

    def put(self, data: Mapping[str, Any], lines: Sequence[str], page: Callable[[], str] | None = None) -> None:
        """Write the JSON and the page that are asked for; print the lines unless the JSON goes to stdout."""
        from unleak.files.atomic import write_atomic

        emit(data, self.json)
        if self.html is not None and page is not None:
            write_atomic(self.html, page())
        if self.json != "-":
            show(*lines)


def parse_size(text: str) -> tuple[int, int]:
    """``"512"`` -> (512, 512); ``"512x768"`` -> height 512, width 768. Raises BadInput."""
    sides = text.lower().split("x")
    sides = sides * 2 if len(sides) == 1 else sides
    if len(sides) != 2 or not all(s.isascii() and s.isdigit() and 8 <= int(s[:5]) <= 8192 for s in sides):
        raise BadInput(f"--size {text!r}: write 512, or height x width such as 512x768, each 8 to 8192 pixels")
    return int(sides[0]), int(sides[1])


def command(
    *shared: str,
    name: str | None = None,
    group: typer.Typer = app,
    old: Mapping[str, str] | None = None,
    presets: str = "",
    files: Sequence[str] = ("*.png",),
    beside: Callable[[Path], Path] | None = None,
    **defaults: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register ``verb(cmd, ...)`` as a command with its own parameters and these shared options.

    Args:
        shared: names in `options.SHARED`, in the order of the help. defaults: other defaults of theirs.
        group: the application, or `bench_app`. name: of the command; default: the function's.
        old: earlier spellings of options and what they are called now, ``{"--isolation": "--set isolation={}"}``.
            They keep working with a note, and no help shows them.
        presets: the table that the help lists, ``"module:NAME"``; read only when the help is shown.
        files: patterns of what it writes in the folder of -o, beside the page and the data.
        beside: which other file it writes where the file of -o is.

    Every parameter that is a path is marked with `Reads` or `Writes`, and `files.outputs.Door` stands around the verb.
    """

    def register(verb: Callable[..., None]) -> Callable[..., None]:
        _, *own = inspect.signature(verb, eval_str=True).parameters.values()
        ours = [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=defaults.get(n, SHARED[n][1]),
                              annotation=SHARED[n][0])
            for n in shared
        ]  # fmt: skip

        def run(**options: Any) -> None:
            with door_of(parameters, options, files, beside) as door:
                try:
                    verb(Command(**{n: options.pop(n) for n in shared}), **options)
                except typer.Exit:
                    door.check_there()
                    raise
                door.check_there()

        parameters = [*own, *ours]
        for p in parameters:
            if "Path" in str(p.annotation) and mark_of(p) is None:
                raise TypeError(f"{verb.__name__}: say with Reads or Writes what {p.name} is")
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        command_class = type("CompatibleCommand", (_CompatibleCommand,), {"old": dict(old or {}), "presets": presets})
        text = escape(inspect.getdoc(verb) or "")
        group.command(name or verb.__name__.replace("_", "-"), cls=command_class, help=text)(run)
        return verb

    return register


def mark_of(parameter: inspect.Parameter) -> Reads | Writes | None:
    """Which files the values of a parameter name, if they do."""
    marks = (m for m in getattr(parameter.annotation, "__metadata__", ()) if isinstance(m, Reads | Writes))
    return next(marks, None)


def door_of(
    parameters: Sequence[inspect.Parameter],
    options: Mapping[str, Any],
    files: Sequence[str],
    beside: Callable[[Path], Path] | None,
) -> Door:
    """The door of a command that is called with these options; see `command`. Raises BadInput."""
    inputs: list[tuple[str, Path]] = []
    outputs: list[tuple[Writes, Path]] = []
    for parameter in parameters:
        mark, value = mark_of(parameter), options[parameter.name]
        for one in value if isinstance(value, list | tuple) else (value,):
            if mark is None or one is None:
                continue
            if isinstance(mark, Reads):
                what = mark.what.format(re.split("[=@]", str(one))[0])
                inputs += [(what, path) for path in mark.files(str(one))]
            elif not (isinstance(one, str) and one == "-"):
                names = (*mark.names, *files) if mark.names else ()
                outputs.append((replace(mark, names=names), Path(one)))
                if beside is not None and mark.option == "-o" and Path(one).name:  # a path without one is refused
                    outputs.append((Writes("the rejects of -o"), beside(Path(one))))
    return Door(inputs, outputs)


class _CompatibleCommand(TyperCommand):
    """A command that still understands earlier spellings of its options, and whose help lists a table of presets."""

    old: Mapping[str, str] = {}
    presets: str = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(modern(args, self.old)))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if self.presets:
            module, _, table = self.presets.partition(":")
            self.help = "\n\n".join((self.help or "", listing(getattr(import_module(module), table))))
            self.presets = ""
        super().format_help(ctx, formatter)


def listing(table: Presets[Any]) -> str:
    """A line for each preset: its name and what it does."""
    return "\n".join(escape(f"{name}: {preset.summary}") for name, preset in table.items())


def modern(args: Sequence[str], old: Mapping[str, str]) -> Iterator[str]:
    """Arguments with every earlier spelling replaced and noted; after ``--`` nothing is an option.

    A key of `old` is an option, or an option with a value that it alone had: ``"--steps=all"``.
    """
    rest = list(args)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option == "--":
            yield from (option, *rest)
            return
        given = [value] if equals else rest[:1]
        new = old.get(option) or old.get("=".join((option, *given)))
        if new is None:
            yield option + equals + value
            continue
        say("note", f"{option} is {new.format('...')} now")
        name, _, form = new.partition(" ")
        yield from (name, *(form.format(one) for one in given))
        rest = rest if equals else rest[1:]

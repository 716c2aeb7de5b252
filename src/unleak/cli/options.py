"""The application, and the options that several commands share: each is written once and means the same everywhere.

A command names those that it has, see `unleak.cli.command.command`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from unleak.cli.console import errors
from unleak.errors import BadInput
from unleak.files.outputs import Reads, Writes, model_files, shards_in

if TYPE_CHECKING:
    from unleak.files.shards import Shard


class _Application(TyperGroup):
    """All commands. Errors become words here, be they of the parser, a command, or the last byte on stdout."""

    def invoke(self, ctx: Any) -> Any:
        with errors():
            return super().invoke(ctx)

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        try:
            with errors():
                status = super().main(*args, **{**extra, "standalone_mode": False})
        except typer.Exit as e:
            status = e.exit_code
        if standalone_mode:
            sys.exit(status)
        return status


app = typer.Typer(
    cls=_Application, help="Find and stop leaks in text-to-image diffusion.", no_args_is_help=True,
    add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
bench_app = typer.Typer(
    help="Benchmarks with intervals; results resume and are written atomically.", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")

Prompt = Annotated[str, typer.Argument(help="What is drawn.")]
Items = Annotated[
    str, typer.Option("--items", help="Items of the prompt: mouse,laptop; with a sense: mouse=furry mouse.")
]
SomeItems = Annotated[
    str | None, typer.Option("--items", help="Items of the prompt: mouse,laptop; with a sense: mouse=furry mouse.")
]
Column = Annotated[
    str | None, typer.Option("--column", help="Field or column of the prompt; default: prompt, caption or text.")
]
ShardOf = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Only the prompts of shard I of N, each run with a file of its own."),
]
Merge = Annotated[
    Path | None,
    typer.Option("--merge", metavar="DIR", help="Join the outputs of all shards in a folder instead."),
    Reads("shards", shards_in),
]
CascadeShare = Annotated[
    float | None,
    typer.Option("--cascade", metavar="SHARE", help="A cheap look at all prompts first; only this share in full."),
]
Engine = Annotated[
    str, typer.Option("--engine", help="Where it runs: here, or ray: a Ray cluster, joined (RAY_ADDRESS) or started.")
]
WorkerCount = Annotated[
    int | None, typer.Option("--workers", min=1, max=10_000, help="Of --engine ray; default: one for each GPU or CPU.")
]
Detectors = Annotated[
    list[str] | None, typer.Option("--detector", help="Repeat it for several; the first gives the score.")
]
FirstSteps = Annotated[
    str, typer.Option("--first-steps", help="How many denoising steps from the first are looked at, or all.")
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option("--calibration", help="What was calibrated for this model's text encoders or detectors."),
    Reads("calibration"),
]
Encoder = Annotated[str | None, typer.Option("--encoder", help="Whose tokens, e.g. text_encoder_2.")]
PadRows = Annotated[str, typer.Option("--pad", help="Rows elsewhere: empty, allpad, padtoken, zero or mean.")]
Pooled = Annotated[
    str, typer.Option("--pooled", help="The pooled vector: of the pad rows, the full prompt, or the item.")
]
Split = Annotated[str, typer.Option("--split", help="Of the prompts: heldout (report) or dev (tune).")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, max=10**9, help="At most this many prompts of each kind.")]
Methods = Annotated[str | None, typer.Option("--methods", help="Only these, comma separated.")]
METHOD = "The method, one of those above."
PresetName = Annotated[str, typer.Option("--preset", metavar="NAME", help=METHOD)]
SomePreset = Annotated[str | None, typer.Option("--preset", metavar="NAME", help=METHOD)]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of all noise.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the method (see `unleak methods`); repeatable."),
]


def shard_of(text: str | None, out: Path | None) -> Shard | None:
    """--shard, whose output is to be found by --merge. Raises BadInput."""
    from unleak.files.shards import Shard

    if text is None:
        return None
    if out is None or out.suffix != ".jsonl":
        raise BadInput(f"--shard {text} needs an output of its own that ends in .jsonl: name it with -o, in a folder"
                       " that holds nothing else")  # fmt: skip
    return Shard.parse(text)


def folder(text: str) -> Path:
    """A folder as the user names it. Raises BadParameter for an empty name, which would stand for the current one."""
    if not text:
        raise typer.BadParameter("the name is empty: write . for the current folder")
    return Path(text)


SHARED: dict[str, tuple[Any, Any]] = {
    "model": (
        Annotated[str, typer.Option("-m", "--model", help="An embedded model, a pipeline folder or a hub id."),
                  Reads("model", model_files)],
        "emoji-sd",
    ),
    "device": (
        Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default: cuda where there is one.")],
        None,
    ),
    "dtype": (
        Annotated[
            str | None,
            typer.Option(help="fp32, fp16 or bf16; default: fp32 on a CPU, else bf16 (flow models) or fp16."),
        ],
        None,
    ),
    "offload": (
        Annotated[str, typer.Option(help="Keep on the CPU what does not work just now: none, model or sequential.")],
        "none",
    ),
    "seeds": (Annotated[str, typer.Option(help="Which images: 7, 0:4 or 1,5,9.")], "0:4"),
    "steps": (
        Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps; default: the model's.")],
        None,
    ),
    "guidance": (Annotated[float | None, typer.Option(help="Guidance scale; default: the model's.")], None),
    "size": (
        Annotated[str | None, typer.Option(metavar="HxW", help="In pixels: 512 or 512x768; default: the model's.")],
        None,
    ),
    "height": (Annotated[int | None, typer.Option(min=8, max=8192, help="In pixels; goes with --width.")], None),
    "width": (Annotated[int | None, typer.Option(min=8, max=8192, help="In pixels; goes with --height.")], None),
    "judge": (
        Annotated[str | None, typer.Option(help="Who looks: glyphs, or a CLIP, detector or VQA model you name."),
                  Reads("judge", model_files)],
        None,
    ),
    "folder": (
        Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Where the output goes.", parser=folder),
                  Writes("-o", ("index.html", "result.json", ".lock"))],
        Path("out"),
    ),
    "out": (Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Where the output goes."),
                  Writes("-o")], None),
    "json": (
        Annotated[str | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - for stdout."),
                  Writes("--json")],
        None,
    ),
    "html": (
        Annotated[
            Path | None, typer.Option("--html", metavar="FILE", help="Write a page for people."), Writes("--html")
        ],
        None,
    ),
    "fail_over": (
        Annotated[
            str | None,
            typer.Option(metavar="SCORE", help="Exit 3 if anything scores at least this (or: threshold)."),
        ],
        None,
    ),
}  # fmt: skip
"""Name of a field of `Command` -> its option and the default, which a command may replace."""

MODEL = ("model", "device", "dtype", "offload")
CALL = ("steps", "guidance", "size", "height", "width")
OUTPUT = ("folder", "json", "html")

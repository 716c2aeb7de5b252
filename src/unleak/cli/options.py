"""What the commands share: the application, and options that mean the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Find and stop leaks in text-to-image diffusion.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
bench_app = typer.Typer(
    help="Benchmarks with intervals; results resume and are written atomically.", no_args_is_help=True
)
app.add_typer(bench_app, name="bench")

Model = Annotated[str, typer.Option("-m", "--model", help="An embedded model, a pipeline folder or a hub id.")]
Seeds = Annotated[str, typer.Option(help="7, 0:4 or 1,5,9")]
JsonFile = Annotated[str | None, typer.Option("--json", help="Write the result as JSON; - for stdout.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write a page for people.")]
Folder = Annotated[Path, typer.Option("-o", "--out", help="Output folder.")]
Steps = Annotated[int | None, typer.Option(min=1, max=1000, help="Denoising steps; default: the model's.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; default: the model's.")]
Size = Annotated[int | None, typer.Option(min=8, max=8192, help="In pixels; default: the model's.")]
JudgeName = Annotated[
    str | None, typer.Option("--judge", help="Who looks: folder or hub id of a CLIP, detector or VQA model.")
]

"""`unleak bench`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from unleak.cli.options import (
    Folder,
    Guidance,
    Model,
    Seeds,
    Steps,
    bench_app,
)
from unleak.console import (
    call_arguments,
    check_folder,
    err,
    errors,
    open_model,
)
from unleak.errors import UnsupportedModel
from unleak.files import only_writer

Split = Annotated[str, typer.Option(help="heldout (report) or dev (tune)")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many prompts of each kind.")]
Methods = Annotated[str | None, typer.Option(help="Only these, comma separated.")]


def run_suite(
    suite: Any, model: str, out: Path, seeds: str, split: str, limit: int | None, methods: str | None, **call: Any
) -> None:
    """Run one benchmark suite with a progress bar per part and print its table."""
    from unleak.generate import parse_seeds

    numbers = parse_seeds(seeds)
    chosen = [m.strip() for m in methods.split(",")] if methods is not None else None
    suite.check(split, chosen)
    folder, arguments = check_folder(out), call_arguments(model, **call)
    pipe = open_model(model)
    from unleak.generate import image_size
    from unleak.world import load as load_world

    side, size = load_world().image, image_size(pipe, arguments)
    if size != (side, side):
        raise UnsupportedModel(f"{model!r} draws {size or 'unknown'} pixels; the world and its judge are {side}x{side}")
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tick(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        with only_writer(folder):
            results = suite.run(
                pipe, folder, model=model, split=split, seeds=numbers, limit=limit, methods=chosen,
                call=arguments, progress=tick,
            )  # fmt: skip
    print(results.table(), end="")


def suite_command(name: str, about: str) -> None:
    """Register `unleak bench NAME`, which runs `unleak.bench.NAME`."""

    @bench_app.command(name, help=about)
    def command(
        model: Model = "emoji-sd",
        out: Folder = Path("results") / name,
        seeds: Seeds = "0:4",
        split: Split = "heldout",
        limit: Limit = None,
        methods: Methods = None,
        steps: Steps = None,
        guidance: Guidance = None,
    ) -> None:
        with errors():
            suite = import_module(f"unleak.bench.{name}")
            call = {"num_inference_steps": steps, "guidance_scale": guidance}
            run_suite(suite, model, out, seeds, split, limit, methods, **call)


suite_command("world", "How well an embedded model draws its world, on held-out prompts, with the judge's own error.")
suite_command(
    "words", "Leaks inside the prompt: repairs and their cost, tokens, flow, diagnosis, lint; --methods chooses."
)
suite_command("copies", "Which detectors tell memorized captions from ordinary ones, and at what cost.")

"""`unleak bench`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from unleak.cli.options import (
    Folder,
    Guidance,
    JudgeName,
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
    judge_for,
    open_model,
    say,
)
from unleak.errors import BadInput, UnsupportedModel
from unleak.files import only_writer

if TYPE_CHECKING:
    from unleak.bench.results import Results

Split = Annotated[str, typer.Option(help="heldout (report) or dev (tune)")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many prompts of each kind.")]
Methods = Annotated[str | None, typer.Option(help="Only these, comma separated.")]


def run_suite(
    suite: Any, model: str, out: Path, seeds: str, split: str, limit: int | None, methods: str | None, **call: Any
) -> None:
    """Run one benchmark suite of the embedded world."""
    from unleak.generate import parse_seeds

    numbers, chosen = parse_seeds(seeds), listed(methods)
    suite.check(split, chosen)
    folder, arguments = check_folder(out), call_arguments(model, **call)
    pipe = open_model(model)
    from unleak.generate import image_size
    from unleak.world import load as load_world

    side, size = load_world().image, image_size(pipe, arguments)
    if size != (side, side):
        raise UnsupportedModel(f"{model!r} draws {size or 'unknown'} pixels; the world and its judge are {side}x{side}")
    measured(partial(suite.run, pipe, folder, model=model, split=split, seeds=numbers, limit=limit, methods=chosen,
                     call=arguments), folder)  # fmt: skip


def run_on_prompts(
    file: Path,
    judge: str | None,
    model: str,
    out: Path,
    seeds: str,
    limit: int | None,
    methods: str | None,
    **call: Any,
) -> None:
    """`unleak bench words` on the prompts of a file, with the judge that the user names."""
    from unleak.bench import own_prompts as suite
    from unleak.generate import image_size, parse_seeds

    numbers, chosen = parse_seeds(seeds), listed(methods)
    suite.check(chosen)
    records, notes = suite.read(file, limit)
    for note in notes:
        say("note", note)
    folder, arguments = check_folder(out), call_arguments(model, **call)
    pipe = open_model(model)
    looks = judge_for(model, image_size(pipe, arguments), judge)
    if looks is None:
        raise BadInput(f"nothing can tell what {model!r} draws: name a judge with --judge")
    measured(partial(suite.run, pipe, folder, records, looks, model=model, source=file.name, seeds=numbers,
                     methods=chosen, call=arguments, notes=notes), folder)  # fmt: skip


def listed(methods: str | None) -> list[str] | None:
    """What `--methods` names."""
    return [m.strip() for m in methods.split(",")] if methods is not None else None


def measured(run: Callable[..., Results], folder: Path) -> None:
    """Run a suite with a progress bar per part, alone in its folder, and print its table."""
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def tick(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total)
            bar.update(tasks[name], completed=done)

        with only_writer(folder):
            results = run(progress=tick)
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


@bench_app.command()
def words(
    model: Model = "emoji-sd",
    prompts: Annotated[
        Path | None, typer.Option(help="Your own, with their items (JSONL, CSV, Attend-and-Excite's JSON).")
    ] = None,
    judge: JudgeName = None,
    out: Folder = Path("results/words"),
    seeds: Seeds = "0:4",
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Leaks inside the prompt: repairs and their cost, tokens, flow, diagnosis, lint; --methods chooses.

    On the embedded world, or with --prompts on your own prompts and model; beside it what the papers report.
    """
    with errors():
        call = {"num_inference_steps": steps, "guidance_scale": guidance}
        if prompts is not None:
            run_on_prompts(prompts, judge, model, out, seeds, limit, methods, **call)
            return
        if judge is not None:
            raise BadInput("the embedded world has its own judge: --judge goes with --prompts")
        from unleak.bench import words as suite

        run_suite(suite, model, out, seeds, split, limit, methods, **call)


suite_command("copies", "Which detectors tell memorized captions from ordinary ones, and at what cost.")

"""`unleak bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from unleak.cli.console import (
    call_arguments,
    check_folder,
    err,
    errors,
    fitting,
    judge_for,
    open_model,
    prompts_of,
    say,
    ticking,
)
from unleak.cli.options import (
    Folder,
    Guidance,
    JudgeName,
    Model,
    Seeds,
    Steps,
    bench_app,
)
from unleak.errors import BadInput, UnsupportedModel
from unleak.files.atomic import only_writer

if TYPE_CHECKING:
    from unleak.bench.results import Results

Split = Annotated[str, typer.Option(help="heldout (report) or dev (tune)")]
Limit = Annotated[int | None, typer.Option(min=1, help="At most this many prompts of each kind.")]
Methods = Annotated[str | None, typer.Option(help="Only these, comma separated.")]


def run_suite(
    suite: Any,
    model: str,
    out: Path,
    seeds: str,
    split: str,
    limit: int | None,
    methods: str | None,
    call: dict[str, Any],
    **options: Any,
) -> None:
    """Run one benchmark suite of the embedded world; `options` are its own."""
    from unleak.drawing.generate import parse_seeds

    numbers, chosen = parse_seeds(seeds), listed(methods)
    suite.check(split, chosen)
    folder = check_folder(out)
    pipe = open_model(model)
    from unleak.drawing.generate import image_size
    from unleak.world import load as load_world

    side, size = load_world().image, image_size(pipe, call)
    if size != (side, side):
        raise UnsupportedModel(f"{model!r} draws {size or 'unknown'} pixels; the world and its judge are {side}x{side}")
    measured(partial(suite.run, pipe, folder, model=model, split=split, seeds=numbers, limit=limit, methods=chosen,
                     call=call, **options), folder)  # fmt: skip


def run_on_prompts(
    file: Path,
    judge: str | None,
    model: str,
    out: Path,
    seeds: str,
    limit: int | None,
    methods: str | None,
    call: dict[str, Any],
) -> None:
    """`unleak bench words` on the prompts of a file, with the judge that the user names."""
    from unleak.bench.words import own_prompts as suite
    from unleak.drawing.generate import image_size, parse_seeds

    numbers, chosen = parse_seeds(seeds), listed(methods)
    suite.check(chosen)
    records, notes = suite.read(file, limit)
    for note in notes:
        say("note", note)
    folder = check_folder(out)
    pipe = open_model(model)
    looks = judge_for(model, image_size(pipe, call), judge)
    if looks is None:
        raise BadInput(f"nothing can tell what {model!r} draws: name a judge with --judge")
    measured(partial(suite.run, pipe, folder, records, looks, model=model, source=file.name, seeds=numbers,
                     methods=chosen, call=call, notes=notes), folder)  # fmt: skip


def listed(methods: str | None) -> list[str] | None:
    """What `--methods` names."""
    return [m.strip() for m in methods.split(",")] if methods is not None else None


def measured(run: Callable[..., Results], folder: Path) -> None:
    """Run a suite with a progress bar per part, alone in its folder, and print its table."""
    with progress_bars() as tick, only_writer(folder):
        results = run(progress=tick)
    print(results.table(), end="")


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
            call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance)
            run_suite(suite, model, out, seeds, split, limit, methods, call)


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
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance)
        if prompts is not None:
            run_on_prompts(prompts, judge, model, out, seeds, limit, methods, call)
            return
        if judge is not None:
            raise BadInput("the embedded world has its own judge: --judge goes with --prompts")
        from unleak.bench.words import words as suite

        run_suite(suite, model, out, seeds, split, limit, methods, call)


@bench_app.command("copies")
def copies(
    model: Model = "emoji-sd",
    out: Folder = Path("results/copies"),
    seeds: Seeds = "0:4",
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
    memorized: Annotated[Path | None, typer.Option(help="For any model: prompts known to be memorized.")] = None,
    ordinary: Annotated[Path | None, typer.Option(help="For any model: ordinary prompts.")] = None,
    column: Annotated[str | None, typer.Option(help="Key or column that holds the prompt.")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Copies of training images: detectors, mitigations and what both cost; --methods chooses, NAME+gate gates.

    On the embedded world, or with --memorized and --ordinary detectors alone, on your own prompts and model.
    """
    with errors():
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance)
        if memorized is None and ordinary is None:
            run_suite(import_module("unleak.bench.copies.copies"), model, out, seeds, split, limit, methods, call)
        elif memorized is None or ordinary is None:
            raise BadInput("give both --memorized FILE and --ordinary FILE")
        else:
            files = {"memorized": memorized, "ordinary": ordinary}
            copies_of_files(model, out, seeds, limit, methods, files, column, call)


def copies_of_files(
    model: str, out: Path, seeds: str, limit: int | None, methods: str | None, files: dict[str, Path],
    column: str | None, call: dict[str, Any],
) -> None:  # fmt: skip
    """Detectors on the prompts of two files and any model."""
    from unleak.drawing.generate import parse_seeds

    numbers = parse_seeds(seeds)
    kinds = {kind: prompts_of(file, column) for kind, file in files.items()}
    folder = check_folder(out)
    from unleak.bench.copies import real_copies

    names = real_copies.check(listed(methods))
    pipe = open_model(model)
    from unleak.copies.scan.scan import fits, plan

    check = fits(pipe, plan(pipe, numbers, 1, names, call=call))
    kinds = {kind: fitting(texts, check)[:limit] for kind, texts in kinds.items()}
    with ticking("measuring", sum(map(len, kinds.values()))) as tick, only_writer(folder):
        results = real_copies.run(
            pipe, folder, kinds, model=model, seeds=numbers, methods=names, call=call, progress=tick
        )
    print(results.table(), *results.notes, sep="\n")


@bench_app.command("regions")
def regions(
    model: Model = "emoji-sd",
    out: Folder = Path("results/regions"),
    suite: Annotated[str, typer.Option(help="world: the embedded one; ale-bench: the published benchmark.")] = "world",
    data: Annotated[Path | None, typer.Option(help="The folder of ALE-Bench.")] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP for TELS and TILS on ALE-Bench: folder or hub id.")] = None,
    dino: Annotated[str | None, typer.Option(help="DINO for the structure distance there: folder or hub id.")] = None,
    lpips: Annotated[
        Path | None, typer.Option(help="Weights (safetensors) to measure LPIPS with; needs unleak[metrics].")
    ] = None,
    seeds: Seeds = "0",
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
    masks: Annotated[
        str | None,
        typer.Option(
            help="What methods are given: exact (the world's default), own (the model's), or its attention alone."
        ),
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Edits of one, two and three objects: does each target appear in its region, and what leaks?"""
    with errors():
        from unleak.bench.regions.edit_each import MASKS
        from unleak.errors import choose

        choose("--suite", suite, ("world", "ale-bench"))
        masks = choose("--masks", masks or ("exact" if suite == "world" else "own"), MASKS)
        given = {"steps": steps, "target_guidance": guidance}
        call = {name: value for name, value in given.items() if value is not None}
        if suite == "world":
            from unleak.bench.regions import regions as world

            run_suite(world, model, out, seeds, split, limit, methods, call, masks=masks)
        else:
            _ale_bench(model, out, data, (clip, dino, lpips), seeds, limit, methods, call, masks)


def _ale_bench(
    model: str, out: Path, data: Path | None, see: tuple[str | None, str | None, Path | None], seeds: str,
    limit: int | None, methods: str | None, call: dict[str, Any], masks: str,
) -> None:  # fmt: skip
    """Run the published benchmark and print its table beside ours."""
    from unleak.drawing.generate import parse_seeds

    if data is None:
        raise BadInput("--suite ale-bench needs --data DIR, the folder of ALE-Bench")
    from unleak.bench.regions import ale_bench
    from unleak.metrics.features import load_clip, load_dino
    from unleak.metrics.perceptual import squeeze_lpips

    clip, dino, lpips = see
    chosen = listed(methods)
    ale_bench.check(data, chosen)
    folder = check_folder(out)
    extractors = ale_bench.Extractors(
        load_clip(clip) if clip else None, load_dino(dino) if dino else None, squeeze_lpips(lpips) if lpips else None
    )
    pipe = open_model(model)
    with progress_bars() as tick, only_writer(folder):
        results = ale_bench.run(
            pipe, folder, data=data, model=model, seeds=parse_seeds(seeds), limit=limit, methods=chosen, call=call,
            masks=masks, see=extractors, progress=tick,
        )  # fmt: skip
    print(ale_bench.comparison(results.rows))

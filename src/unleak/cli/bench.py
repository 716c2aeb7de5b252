"""`unleak bench`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import fitting, progress_bars, prompts_of, say, show, ticking
from unleak.cli.options import MODEL, Column, Limit, Methods, Split, bench_app
from unleak.errors import BadInput, UnsupportedModel
from unleak.files.atomic import only_writer
from unleak.files.outputs import Reads, model_files

if TYPE_CHECKING:
    from unleak.bench.results import Results

SHARED = (*MODEL, "seeds", "steps", "guidance", "folder")
FILES = ("results.json", "results.md", "*.png", "*.webp", "parts/*")


def pictures_of(folder: str) -> Iterator[Path]:
    """The files of ALE-Bench."""
    for name in ("images", "masks", "prompts"):
        yield from (Path(folder) / name).rglob("*")


def run_suite(cmd: Command, suite: Any, split: str, limit: int | None, methods: str | None, **options: Any) -> None:
    """Run one benchmark suite of the embedded world; `options` are its own."""
    call = options.pop("call", None)
    numbers, chosen, call = cmd.numbers, listed(methods), cmd.call if call is None else call
    suite.check(split, chosen)
    pipe = cmd.open()
    from unleak.drawing.generate import image_size
    from unleak.models import settings
    from unleak.models import world as world_of
    from unleak.world import load as load_world

    edition, drawn = getattr(suite, "EDITION", 1), world_of(cmd.model)
    if drawn not in (None, edition):
        other = "`unleak bench senses`" if drawn == 2 else "another benchmark"
        raise UnsupportedModel(f"{cmd.model!r} draws world {drawn}; this asks about world {edition}: use {other}")
    side, size = load_world(edition).image, image_size(pipe, {**settings(cmd.model), **call})
    if size != (side, side):
        raise UnsupportedModel(
            f"{cmd.model!r} draws {size or 'unknown'} pixels; the world and its judge are {side}x{side}"
        )
    measured(cmd, partial(suite.run, pipe, model=cmd.model, split=split, seeds=numbers, limit=limit,
                          methods=chosen, call=call, **options))  # fmt: skip


def run_on_prompts(cmd: Command, file: Path, limit: int | None, methods: str | None) -> None:
    """`unleak bench words` on the prompts of a file, with the judge that the user names."""
    from unleak.bench.words import own_prompts as suite

    numbers, chosen, call = cmd.numbers, listed(methods), cmd.call
    suite.check(chosen)
    records, notes = suite.read(file, limit)
    for note in notes:
        say("note", note)
    pipe = cmd.open()
    looks = cmd.looks(pipe)
    if looks is None:
        raise BadInput(f"nothing can tell what {cmd.model!r} draws: name a judge with --judge")
    measured(cmd, partial(suite.run, pipe, records=records, judge=looks, model=cmd.model, source=file.name,
                          seeds=numbers, methods=chosen, call=call, notes=notes))  # fmt: skip


def listed(methods: str | None) -> list[str] | None:
    """What `--methods` names."""
    return [m.strip() for m in methods.split(",")] if methods is not None else None


def measured(cmd: Command, run: Callable[..., Results]) -> None:
    """Run a suite with a progress bar per part, alone in its folder, and print its table."""
    with progress_bars() as tick, only_writer(cmd.folder):
        results = run(out=cmd.folder, progress=tick)
    show(results.table().rstrip("\n"))


@command(*SHARED, group=bench_app, files=FILES, folder=Path("results/world"))
def world(cmd: Command, split: Split = "heldout", limit: Limit = None, methods: Methods = None) -> None:
    """How well an embedded model draws its world, on held-out prompts, with the judge's own error."""
    run_suite(cmd, import_module("unleak.bench.world"), split, limit, methods)


@command(*SHARED, "judge", group=bench_app, files=FILES, folder=Path("results/words"))
def words(
    cmd: Command,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Your own, with their items (JSONL, CSV, Attend-and-Excite's JSON)."),
        Reads("prompts"),
    ] = None,
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
) -> None:
    """Leaks inside the prompt: repairs and their cost, tokens, flow, diagnosis, lint; --methods chooses.

    On the embedded world, or with --prompts on your own prompts and model; beside it what the papers report.
    """
    if prompts is not None:
        run_on_prompts(cmd, prompts, limit, methods)
        return
    if cmd.judge is not None:
        raise BadInput("the embedded world has its own judge: --judge goes with --prompts")
    from unleak.bench.words import words as suite

    run_suite(cmd, suite, split, limit, methods)


@command(*SHARED, group=bench_app, files=FILES, folder=Path("results/senses"))
def senses(cmd: Command, split: Split = "heldout", limit: Limit = None, methods: Methods = None) -> None:
    """Does company change the sense that is drawn? On a model of World 2 that was taught no leak; repairs beside it."""
    run_suite(cmd, import_module("unleak.bench.words.senses"), split, limit, methods)


@command(*SHARED, group=bench_app, files=FILES, folder=Path("results/copies"))
def copies(
    cmd: Command,
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
    memorized: Annotated[
        Path | None, typer.Option(help="Prompts that are known to be memorized."), Reads("memorized prompts")
    ] = None,
    ordinary: Annotated[
        Path | None, typer.Option(help="Ordinary prompts, of the kind that will be scanned."), Reads("ordinary prompts")
    ] = None,
    column: Column = None,
) -> None:
    """Copies of training images: detectors, mitigations and what both cost; --methods chooses, NAME+gate gates.

    On the embedded world, or with --memorized and --ordinary detectors alone, on your own prompts and any model.
    """
    if memorized is None and ordinary is None:
        run_suite(cmd, import_module("unleak.bench.copies.copies"), split, limit, methods)
    elif memorized is None or ordinary is None:
        raise BadInput("give both --memorized FILE and --ordinary FILE")
    else:
        copies_of_files(cmd, {"memorized": memorized, "ordinary": ordinary}, column, limit, methods)


def copies_of_files(
    cmd: Command, files: dict[str, Path], column: str | None, limit: int | None, methods: str | None
) -> None:
    """Detectors on the prompts of two files and any model."""
    numbers, call = cmd.numbers, cmd.call
    kinds = {kind: prompts_of(file, column) for kind, file in files.items()}
    from unleak.bench.copies import real_copies

    names = real_copies.check(listed(methods))
    pipe = cmd.open()
    from unleak.copies.scan.scan import fits, plan

    check = fits(pipe, plan(pipe, numbers, 1, names, call=call))
    kinds = {kind: fitting(texts, check)[:limit] for kind, texts in kinds.items()}
    with ticking("measuring", sum(map(len, kinds.values()))) as tick, only_writer(cmd.folder):
        results = real_copies.run(
            pipe, cmd.folder, kinds, model=cmd.model, seeds=numbers, methods=names, call=call, progress=tick
        )
    show(results.table(), *results.notes)


@command(*SHARED, group=bench_app, files=FILES, folder=Path("results/regions"), seeds="0")
def regions(
    cmd: Command,
    suite: Annotated[str, typer.Option(help="world: the embedded one; ale-bench: the published benchmark.")] = "world",
    data: Annotated[Path | None, typer.Option(help="The folder of ALE-Bench."), Reads("benchmark", pictures_of)] = None,
    clip: Annotated[
        str | None,
        typer.Option(help="CLIP for TELS and TILS on ALE-Bench: folder or hub id."),
        Reads("CLIP", model_files),
    ] = None,
    dino: Annotated[
        str | None,
        typer.Option(help="DINO for the structure distance there: folder or hub id."),
        Reads("DINO", model_files),
    ] = None,
    lpips: Annotated[
        Path | None,
        typer.Option(help="Weights (safetensors) to measure LPIPS with; needs torchmetrics."),
        Reads("weights"),
    ] = None,
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
    masks: Annotated[
        str | None,
        typer.Option(
            help="What methods are given: exact (the world's default), own (the model's), or its attention alone."
        ),
    ] = None,
) -> None:
    """Edits of one, two and three objects: does each target appear in its region, and what leaks?"""
    from unleak.bench.regions.edit_each import MASKS
    from unleak.errors import choose

    choose("--suite", suite, ("world", "ale-bench"))
    masks = choose("--masks", masks or ("exact" if suite == "world" else "own"), MASKS)
    given = {"steps": cmd.steps, "target_guidance": cmd.guidance}
    call = {name: value for name, value in given.items() if value is not None}
    if suite == "world":
        from unleak.bench.regions import regions as world

        run_suite(cmd, world, split, limit, methods, call=call, masks=masks)
    else:
        _ale_bench(cmd, data, (clip, dino, lpips), limit, methods, call, masks)


def _ale_bench(
    cmd: Command, data: Path | None, see: tuple[str | None, str | None, Path | None], limit: int | None,
    methods: str | None, call: dict[str, Any], masks: str,
) -> None:  # fmt: skip
    """Run the published benchmark and print its table beside ours."""
    if data is None:
        raise BadInput("--suite ale-bench needs --data DIR, the folder of ALE-Bench")
    from unleak.bench.regions import ale_bench
    from unleak.metrics.features import load_clip, load_dino
    from unleak.metrics.perceptual import squeeze_lpips

    clip, dino, lpips = see
    chosen = listed(methods)
    ale_bench.check(data, chosen)
    extractors = ale_bench.Extractors(
        load_clip(clip) if clip else None, load_dino(dino) if dino else None, squeeze_lpips(lpips) if lpips else None
    )
    numbers, pipe, folder = cmd.numbers, cmd.open(), cmd.folder
    with progress_bars() as tick, only_writer(folder):
        results = ale_bench.run(
            pipe, folder, data=data, model=cmd.model, seeds=numbers, limit=limit, methods=chosen, call=call,
            masks=masks, see=extractors, progress=tick,
        )  # fmt: skip
    show(ale_bench.comparison(results.rows))

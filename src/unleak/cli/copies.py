"""Leaks of training images: scan, calibrate, guard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import fitting, number, prompts_of, quiet_libraries, say, show_row, ticking
from unleak.cli.options import (
    CALL,
    MODEL,
    OUTPUT,
    CalibrationFile,
    CascadeShare,
    Column,
    Detectors,
    Engine,
    FirstSteps,
    Merge,
    PresetName,
    Prompt,
    Settings,
    ShardOf,
    SomeItems,
    WorkerCount,
    shard_of,
)
from unleak.errors import BadInput, choose
from unleak.files.jsonl import check_rejects, rejects_of
from unleak.files.outputs import Reads, prompt_files
from unleak.files.parquet import growing

if TYPE_CHECKING:
    from unleak.copies.scan.calibrate import Calibration
    from unleak.copies.scan.scan import ScanPlan
    from unleak.copies.scan.scan_file import ScanSummary

RENAMED = {"--inference-steps": "--steps {}", "--steps=all": "--first-steps all"}
"""Earlier spellings of scan and calibrate."""


def looked_at(cmd: Command, first_steps: str) -> int | None:
    """`--first-steps`; None for all. Raises BadInput."""
    if cmd.steps is not None:
        say("note", "--steps are those of the whole trajectory; how many of them are looked at is --first-steps now")
    if first_steps == "all":
        return None
    if not first_steps.isascii() or not first_steps.isdigit() or not 1 <= int(first_steps[:5]) <= 1000:
        raise BadInput(f"--first-steps {first_steps!r}: give a number of denoising steps, or all")
    return int(first_steps)


def seeds_of(cmd: Command) -> list[int]:
    """The seeds; a single number was once how many there are. Raises BadInput."""
    if cmd.seeds.isascii() and cmd.seeds.isdigit():
        say("note", f"--seeds {cmd.seeds} is --seeds 0:{cmd.seeds} now")
        cmd.seeds = f"0:{cmd.seeds}"
    return cmd.numbers


@command(*MODEL, "seeds", *CALL, "fail_over", "out", "html", out=Path("scan.jsonl"), old=RENAMED,
         presets="unleak.copies.presets:DETECTORS", beside=rejects_of)  # fmt: skip
def scan(
    cmd: Command,
    file: Annotated[
        Path | None,
        typer.Argument(help="Prompts: .jsonl, .json, .csv, .tsv, .parquet, one a line; a folder or a 'pattern*'."),
        Reads("prompts", prompt_files),
    ] = None,
    detector: Detectors = None,
    calibration: CalibrationFile = None,
    first_steps: FirstSteps = "1",
    column: Column = None,
    shard: ShardOf = None,
    merge: Merge = None,
    cascade: CascadeShare = None,
    engine: Engine = "here",
    workers: WorkerCount = None,
) -> None:
    """Which prompts make the model copy? Scores a file of prompts from the first denoising steps.

    An interrupted scan goes on where it stopped. A calibration that comes with the model is used where it holds. With
    one, `--fail-over threshold` is what was calibrated. Many machines share a file by --shard 1/N to N/N, each with an
    -o of its own in one folder, and --merge joins them.
    """
    mine, cluster = shard_of(shard, cmd.out), choose("engine", engine, ("here", "ray")) == "ray"
    if cascade is not None and (mine or merge or not 0 < cascade < 1):
        raise BadInput(f"--cascade {cascade}: give a share above 0 and below 1, of a scan without --shard or --merge")
    if workers is not None and not cluster:
        raise BadInput("--workers are those of --engine ray: give that too")
    if (file is None) == (merge is None):
        raise BadInput("give a file of prompts, or --merge and the folder of the shards, and not both")
    count, limit = looked_at(cmd, first_steps), None
    if cmd.fail_over is not None and cmd.fail_over != "threshold":
        limit = number(cmd.fail_over, "--fail-over")
    from unleak import models

    shipped = models.calibration(cmd.model) if calibration is None and detector is None else None
    if cmd.fail_over == "threshold" and merge is None and calibration is None and shipped is None:
        raise BadInput("--fail-over threshold needs --calibration FILE; without one, give a score")
    check_rejects(cmd.out, growing(cmd.out))
    if file is None or merge is not None:
        return merged(cmd, Path(merge or ""), limit)
    from unleak.files.prompt_file import count_entries

    lines, seeds, call, out = count_entries(file), seeds_of(cmd), cmd.call, cmd.out
    from unleak.copies.scan.calibrate import Calibration

    known = Calibration.load(calibration) if calibration else None
    settings = {"column": column, "limit": limit, "shard": mine}
    if cluster:
        arguments = {"model": cmd.model, "seeds": seeds, "first_steps": count, "detectors_": detector,
                     "calibration": known, "call": call, "own_calibration": shipped is not None,
                     "load": {"device": cmd.device, "dtype": cmd.dtype, "offload": cmd.offload}}  # fmt: skip
        if cascade is not None:
            raise BadInput("--cascade and --engine ray do not go together yet: use `copies.scan.cascade` in Python")
        return show_scan(cmd, file, on_ray(cmd, file, workers, arguments, lines, settings))
    pipe = cmd.open()
    from unleak.copies.scan.scan import plan
    from unleak.copies.scan.scan_file import scan_file

    if shipped is not None:
        known = shipped_for(pipe, shipped, len(seeds), call, count, needed=cmd.fail_over == "threshold")
    what = plan(pipe, seeds, count, detector, known, call=call)
    if known is None:
        say("note", "uncalibrated: the scores order prompts; what counts as memorized takes `unleak calibrate`")
    with ticking("scanning", lines, so_far=True) as tick:
        if cascade is not None:
            summary = in_stages(cmd, file, pipe, what, cascade, {**settings, "progress": tick})
        else:
            summary = scan_file(pipe, file, out, what, model=cmd.model, progress=tick, **settings)
    show_scan(cmd, file, summary)


def in_stages(
    cmd: Command, file: Path, pipe: Any, what: ScanPlan, share: float, settings: dict[str, Any]
) -> ScanSummary:
    """The scan of the highest share of a cheap look."""
    from contextlib import nullcontext

    from unleak.copies.scan.cascade import cascade, first_file, first_look
    from unleak.copies.scan.scanner import Scanner
    from unleak.files.workers import Here

    look = first_look(what.seeds, what.call)
    cheap = Scanner(pipe, name=cmd.model, first_steps=what.steps, detectors_=what.detectors, **look)
    full = Scanner(pipe, plan=what, name=cmd.model)
    stages = cascade(
        lambda: nullcontext(Here(cheap)), lambda: nullcontext(Here(full)), file, cmd.out, share, **settings
    )
    say(
        "note",
        f"{stages.looked_at} prompts were looked at ({first_file(cmd.out)}), {stages.passed} are scanned in full",
    )
    return stages.scan


def on_ray(
    cmd: Command, file: Path, count: int | None, arguments: dict[str, Any], lines: int | None, settings: dict[str, Any]
) -> ScanSummary:
    """The scan by workers of a cluster, each of which opens the model itself."""
    from unleak.copies.scan.scan_file import scan_by
    from unleak.copies.scan.scanner import Scanner
    from unleak.integrations.ray_workers import RayWorkers

    quiet_libraries()
    with RayWorkers(Scanner, arguments, count) as workers:
        say("note", f"{workers.count} workers")
        (note,) = workers.map("noted", [None])
        if note and cmd.fail_over == "threshold":
            raise BadInput(note)
        if note:
            say("note", note)
        with ticking("scanning", lines, so_far=True) as tick:
            return scan_by(workers, file, cmd.out, progress=tick, **settings)


def merged(cmd: Command, folder: Path, limit: float | None) -> None:
    """Join shards, and show what they hold."""
    from unleak.copies.scan.scan_file import FILE, RECORD, ScanSummary
    from unleak.files.shards import merge

    merge(folder, cmd.out, FILE, RECORD, ascii=True)
    summary = ScanSummary.of(cmd.out, limit)
    if cmd.fail_over == "threshold" and summary.limit is None:
        raise BadInput("--fail-over threshold: these shards were scanned without a calibration; give a score")
    show_scan(cmd, folder, summary)


def show_scan(cmd: Command, source: Path, summary: ScanSummary) -> None:
    """The highest scores of a scan, its page, and the exit status that --fail-over asks for."""
    if cmd.html:
        from unleak.files.atomic import write_atomic
        from unleak.report import scan as report

        write_atomic(cmd.html, report.file_page(cmd.out, summary.limit))
    if summary.rejected:
        say("note", f"{summary.rejected} lines cannot be used and are listed, by number, in {rejects_of(cmd.out)}")
    show_row("score", "line", "prompt")
    for score, line, prompt, source_file in summary.highest:
        show_row(f"{score:.6g}", f"{source_file}:{line}" if source_file else line, prompt)
    if summary.limit is not None:
        say("result", f"{summary.over} of {summary.prompts} prompts score at least {summary.limit:.6g}", "bold")
    if cmd.fail_over is not None and not summary.prompts:
        raise BadInput(
            f"{source} holds no prompt that can be scored, so nothing was looked at: --fail-over decides nothing"
        )
    if cmd.fail_over is not None and summary.over:
        raise typer.Exit(3)


def shipped_for(
    pipe: Any, file: Path, seeds: int, call: dict[str, Any], steps: int | None, needed: bool
) -> Calibration | None:
    """The calibration that comes with the model; None, noted, where it does not hold for this run.

    Raises BadInput: it does not, and is needed.
    """
    from unleak.copies.scan.calibrate import Calibration

    calibration = Calibration.load(file)
    try:
        calibration.made_at.check(pipe, seeds, call, steps)
    except BadInput as e:
        if needed:
            raise
        say("note", f"the model's own calibration is not used: {e}")
        return None
    say("note", f"calibrated by {file.name} of the model: {calibration.detector} from {calibration.threshold:.6g} on")
    return calibration


@command(
    *MODEL, "seeds", *CALL, "out", out=Path("calibration.json"), old=RENAMED, presets="unleak.copies.presets:DETECTORS"
)
def calibrate(
    cmd: Command,
    memorized: Annotated[
        Path, typer.Option(help="Prompts that are known to be memorized."), Reads("memorized prompts")
    ],
    ordinary: Annotated[
        Path, typer.Option(help="Ordinary prompts, of the kind that will be scanned."), Reads("ordinary prompts")
    ],
    detector: Detectors = None,
    combine: Annotated[bool, typer.Option("--combine", help="Join all detectors by logistic regression.")] = False,
    fpr: Annotated[float, typer.Option(help="Share of ordinary prompts that may be flagged.")] = 0.01,
    first_steps: FirstSteps = "1",
    column: Column = None,
) -> None:
    """Which detector tells this model's memorized prompts from ordinary ones, and from which score on?"""
    count, seeds = looked_at(cmd, first_steps), seeds_of(cmd)
    if not 0 < fpr < 1:
        raise BadInput(f"--fpr {fpr}: give a share between 0 and 1")
    kinds = [prompts_of(file, column) for file in (memorized, ordinary)]
    call, out = cmd.call, cmd.out
    pipe = cmd.open()
    from unleak.copies.scan.fit import calibrate as fit
    from unleak.copies.scan.scan import DEFAULT, fits, plan
    from unleak.files.atomic import write_atomic

    check = fits(pipe, plan(pipe, seeds, count, detector or DEFAULT, call=call))
    kinds = [fitting(texts, check) for texts in kinds]
    with ticking("measuring", sum(map(len, kinds))) as tick:
        calibration = fit(pipe, kinds[0], kinds[1], seeds, count, detector or DEFAULT, combine=combine, fpr=fpr,
                   model=cmd.model, call=call, progress=tick)  # fmt: skip
    write_atomic(out, calibration.to_json())
    show_row("detector", "AUROC", "95 % interval", "TPR at 1 % FPR", "threshold")
    for name, one in calibration.compared.items():
        (area, low, high), (rate, *_) = one["auroc"], one["tpr_at_1fpr"]
        show_row(name, f"{area:.4f}", f"{low:.4f} to {high:.4f}", f"{rate:.3f}", f"{one['threshold']:.6g}")
    say("result", f"{calibration.detector} from {calibration.threshold:.6g} on; {out}", "bold")


@command(*MODEL, "seeds", *CALL, "judge", *OUTPUT, presets="unleak.copies.presets:MITIGATIONS",
         files=("before*.png", "after*.png"))  # fmt: skip
def guard(
    cmd: Command,
    prompt: Prompt,
    gate: Annotated[
        Path | None,
        typer.Option(
            help="A calibration: mitigate only prompts that it flags; auto: the one that comes with the model."
        ),
        Reads("calibration"),
    ] = None,
    preset: PresetName = "detour",
    settings: Settings = None,
    items: SomeItems = None,
    original: Annotated[
        list[Path] | None,
        typer.Option(help="A training image that may be copied; again for each further one."),
        Reads("original"),
    ] = None,
) -> None:
    """Draw with a mitigation of copying, before and after at the same seeds.

    Copies are counted, and what is left of them, against the --original images; those of the embedded models are known.
    """
    from unleak import models
    from unleak.copies.presets import MITIGATIONS
    from unleak.copies.scan.calibrate import Calibration
    from unleak.files import pictures
    from unleak.text.items import find_all, parse_items
    from unleak.text.prompt import check_prompt

    check_prompt(prompt)
    originals = [pictures.photo(file) for file in original or ()]
    numbers = cmd.numbers
    if str(gate) == "auto" and (gate := models.calibration(cmd.model)) is None:
        raise BadInput(
            f"no calibration comes with {cmd.model!r}: make one with `unleak calibrate` and give --gate FILE"
        )
    calibration = None if gate is None else Calibration.load(gate)
    parameters = MITIGATIONS[preset].parse(settings or ())
    MITIGATIONS[preset].make(gate=calibration, **parameters)  # refuses what cannot be
    named = parse_items(items) if items is not None else ()
    find_all(prompt, named)
    call, pipe = cmd.call, cmd.open()
    from unleak.copies.originals import copy_judge
    from unleak.copies.protect import guard as protect

    judge = cmd.looks(pipe, "without a judge only the images are compared; look at them")
    if judge is not None and items is None:
        named = judge.named(prompt)
    with ticking("drawing", 2 * len(numbers)) as tick:
        result = protect(pipe, prompt, preset, gate=calibration, seeds=numbers, judge=judge, items=named, call=call,
                         copies=copy_judge(pipe, originals, judge, call), model=cmd.model, progress=tick,
                         **parameters)  # fmt: skip
    cmd.show(result, cmd.folder / "before-after.png")

"""Leaks of training images: scan, calibrate, guard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unleak.cli.console import (
    call_arguments,
    check_file,
    check_outputs,
    emit,
    errors,
    fitting,
    judge_for,
    number,
    open_model,
    prompts_of,
    say,
    ticking,
)
from unleak.cli.options import (
    Folder,
    Guidance,
    HtmlFile,
    JsonFile,
    Model,
    Seeds,
    Size,
    Steps,
    app,
)
from unleak.errors import BadInput

Detectors = Annotated[
    list[str] | None, typer.Option("--detector", help="Repeat it for several; the first gives the score.")
]
Looked = Annotated[str, typer.Option("--steps", help="Denoising steps from the first that are looked at, or all.")]
Images = Annotated[int, typer.Option("--seeds", min=1, max=10_000, help="Images of each prompt, seeds 0, 1, 2 ...")]
Whole = Annotated[int | None, typer.Option("--inference-steps", min=1, max=1000, help="Steps of the whole trajectory.")]
Column = Annotated[str | None, typer.Option(help="Key or column that holds the prompt.")]


def looked_at(steps: str) -> int | None:
    """`--steps` of scan and calibrate. Raises BadInput."""
    if steps == "all":
        return None
    if not steps.isascii() or not steps.isdigit() or not 1 <= int(steps[:5]) <= 1000:
        raise BadInput(f"--steps {steps!r}: give a number of denoising steps, or all")
    return int(steps)


@app.command()
def scan(
    file: Annotated[Path, typer.Argument(help="Prompts: .jsonl, .csv, or one a line.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Results, JSONL; an interrupted scan goes on.")] = Path(
        "scan.jsonl"
    ),
    detector: Detectors = None,
    calibration: Annotated[Path | None, typer.Option(help="What `unleak calibrate` made for this model.")] = None,
    fail_over: Annotated[
        str | None, typer.Option(help="Exit 3 if a prompt scores at least this; or: threshold (the calibrated).")
    ] = None,
    html: HtmlFile = None,
    model: Model = "emoji-sd",
    steps: Looked = "1",
    seeds: Images = 4,
    column: Column = None,
    inference_steps: Whole = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Which prompts make the model copy? Scores a file of prompts from the first denoising steps."""
    with errors():
        count, limit = looked_at(steps), None
        if fail_over is not None and fail_over != "threshold":
            limit = number(fail_over, "--fail-over")
        if fail_over == "threshold" and calibration is None:
            raise BadInput("--fail-over threshold needs --calibration FILE; without one, give a score")
        check_file(out, "-o")
        check_file(html, "--html")
        if html is not None and html.absolute() == out.absolute():
            raise BadInput(f"-o and --html both write {str(out)!r}: name two files")
        from unleak.files.prompt_file import count_lines

        lines = count_lines(file)
        call = call_arguments(model, num_inference_steps=inference_steps, guidance_scale=guidance,
                              height=height, width=width)  # fmt: skip
        from unleak.copies.scan.calibrate import Calibration

        known = Calibration.load(calibration) if calibration else None
        pipe = open_model(model)
        from unleak.copies.scan.scan import plan
        from unleak.copies.scan.scan_file import rejects_of, scan_file
        from unleak.files.atomic import write_atomic
        from unleak.report import scan as report

        made = plan(pipe, seeds, count, detector, known, call=call)
        if known is None:
            say("note", "uncalibrated: the scores order prompts; what counts as memorized takes `unleak calibrate`")
        with ticking("scanning", lines, so_far=True) as tick:
            found = scan_file(pipe, file, out, made, model=model, column=column, limit=limit, progress=tick)
        if html:
            write_atomic(html, report.page(out, found.limit))
        if found.rejected:
            say("note", f"{found.rejected} lines cannot be used and are listed, by number, in {rejects_of(out)}")
        print("score", "line", "prompt", sep="\t")
        for score, line, prompt in found.highest:
            print(f"{score:.6g}", line, " ".join(prompt.split()), sep="\t")
        if found.limit is not None:
            say("result", f"{found.over} of {found.prompts} prompts score at least {found.limit:.6g}", "bold")
        if fail_over is not None and found.over:
            raise typer.Exit(3)


@app.command()
def calibrate(
    memorized: Annotated[Path, typer.Option(help="Prompts that are known to be memorized.")],
    ordinary: Annotated[Path, typer.Option(help="Ordinary prompts, of the kind that will be scanned.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The calibration, JSON.")] = Path("calibration.json"),
    detector: Detectors = None,
    combine: Annotated[bool, typer.Option("--combine", help="Join all detectors by logistic regression.")] = False,
    fpr: Annotated[float, typer.Option(help="Share of ordinary prompts that may be flagged.")] = 0.01,
    model: Model = "emoji-sd",
    steps: Looked = "1",
    seeds: Images = 4,
    column: Column = None,
    inference_steps: Whole = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Which detector tells this model's memorized prompts from ordinary ones, and from which score on?"""
    with errors():
        count = looked_at(steps)
        if not 0 < fpr < 1:
            raise BadInput(f"--fpr {fpr}: give a share between 0 and 1")
        check_file(out, "-o")
        kinds = [prompts_of(file, column) for file in (memorized, ordinary)]
        call = call_arguments(model, num_inference_steps=inference_steps, guidance_scale=guidance,
                              height=height, width=width)  # fmt: skip
        pipe = open_model(model)
        from unleak.copies.scan.fit import calibrate as fit
        from unleak.copies.scan.scan import DEFAULT, fits, plan

        check = fits(pipe, plan(pipe, seeds, count, detector or DEFAULT, call=call))
        kinds = [fitting(texts, check) for texts in kinds]
        with ticking("measuring", sum(map(len, kinds))) as tick:
            made, found = fit(pipe, kinds[0], kinds[1], seeds, count, detector or DEFAULT, combine=combine, fpr=fpr,
                              model=model, call=call, progress=tick)  # fmt: skip
        made.save(out)
        print("detector", "AUROC", "95 % interval", "TPR at 1 % FPR", "threshold", sep="\t")
        for s in found:
            area, rate = s.auroc, s.tpr_at_1fpr
            print(s.detector, f"{area.value:.4f}", f"{area.low:.4f} to {area.high:.4f}", f"{rate.value:.3f}",
                  f"{s.threshold:.6g}", sep="\t")  # fmt: skip
        say("result", f"{made.detector} from {made.threshold:.6g} on; {out}", "bold")


@app.command()
def guard(
    prompt: str,
    gate: Annotated[Path | None, typer.Option(help="A calibration: mitigate only prompts that it flags.")] = None,
    preset: Annotated[str, typer.Option(help="The mitigation, one of those above.")] = "detour",
    items: Annotated[
        str | None, typer.Option(help="Items that should be there; default: those the judge knows.")
    ] = None,
    model: Model = "emoji-sd",
    seeds: Seeds = "0:4",
    out: Folder = Path("out"),
    json_file: JsonFile = None,
    html: HtmlFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Draw with a mitigation of copying, before and after at the same seeds.

    Presets: detour, guard, guard-official, attenuate, and the baselines random-token, random-number, word-repetition,
    noisy-rows, optimise-rows, mask-summary, delayed-guidance, opposite-guidance, repulsion-only, pad-swap, prss,
    nemo.
    """
    with errors():
        from unleak.copies.presets import preset as mitigation
        from unleak.copies.scan.calibrate import Calibration
        from unleak.drawing.generate import image_size, parse_seeds
        from unleak.text.items import find_all, parse_items
        from unleak.text.prompt import check_prompt

        check_prompt(prompt)
        numbers = parse_seeds(seeds)
        calibration = None if gate is None else Calibration.load(gate)
        method = mitigation(preset, calibration)
        named = parse_items(items) if items is not None else ()
        find_all(prompt, named)
        folder = check_outputs(out, json_file, html)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        if calibration is not None:
            calibration.check(pipe)
        from unleak.copies.protect import protect
        from unleak.judges.copies import scene_judge

        judge = judge_for(model, image_size(pipe, call))
        if judge is None:
            say("note", "without a judge only the images are compared; look at them")
        elif items is None:
            named = judge.named(prompt)
        with ticking("drawing", 2 * len(numbers)) as tick:
            result = protect(pipe, prompt, method, preset=preset, seeds=numbers, judge=judge, items=named, call=call,
                             copies=scene_judge() if judge else None, model=model, progress=tick)  # fmt: skip
        result.save(f"{folder}/")
        emit(result.to_dict(), json_file)
        if html:
            result.save(html)
        if json_file != "-":
            for line in result.sentences():
                print(line)
            print(folder / "before-after.png")

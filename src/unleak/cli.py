"""The command line: parse, call the library, render. Data goes to stdout, progress to stderr.

Exit status: 0 done, 1 failed, 2 bad use, 3 findings over a limit, 4 unsupported model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress

from unleak import __version__
from unleak.console import (
    call_arguments,
    check_file,
    check_folder,
    check_outputs,
    count_lines,
    emit,
    err,
    errors,
    fitting,
    judge_for,
    known_items,
    known_senses,
    number,
    open_model,
    prompts_of,
    read_lines,
    say,
    ticking,
    ticking_to,
    tolerant,
    world_items,
)
from unleak.errors import BadInput, PromptTruncated, UnsupportedModel

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
TokensOf = Annotated[str | None, typer.Option("--encoder", help="Whose tokens, e.g. text_encoder_2.")]
JudgeName = Annotated[
    str | None, typer.Option("--judge", help="Who looks: folder or hub id of a CLIP, detector or VQA model.")
]
Size = Annotated[int | None, typer.Option(min=8, max=8192, help="In pixels; default: the model's.")]


def version(show: bool) -> None:
    if show:
        print(f"unleak {__version__}")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[bool, typer.Option("--version", callback=version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Find and stop leaks in text-to-image diffusion: between words, between regions, from the training set."""
    tolerant()


@app.command()
def doctor(model: Model = "emoji-sd", json_file: JsonFile = None) -> None:
    """What is this pipeline, which attention sites has it, can they be seen, and do the laws hold?"""
    with errors():
        check_file(json_file, "--json")
        pipe = open_model(model)
        from unleak.core.doctor import doctor as examine

        with err.status("examining it"):
            report = examine(pipe)
        emit(report.to_dict(), json_file)
        if json_file != "-":
            print(report)
        if not report.ok:
            raise typer.Exit(1 if report.observable else 4)


@app.command()
def generate(
    prompt: str,
    model: Model = "emoji-sd",
    seeds: Seeds = "0:4",
    out: Folder = Path("out"),
    json_file: JsonFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
    truncate: Annotated[bool, typer.Option("--truncate", help="Draw a prompt although its end does not fit.")] = False,
) -> None:
    """Draw a prompt at several seeds; with an embedded model, also say what is in the images."""
    with errors():
        from unleak.generate import check_prompt, parse_seeds

        check_prompt(prompt)
        numbers = parse_seeds(seeds)
        folder = check_folder(out)
        check_file(json_file, "--json", out)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        from PIL import Image

        from unleak.bench.results import write_atomic
        from unleak.generate import generate as draw
        from unleak.generate import image_size, rehearse
        from unleak.report.pictures import contact_sheet, png

        judge = judge_for(model, image_size(pipe, call))
        try:
            rehearse(pipe, prompt, **call)
        except PromptTruncated as e:
            if not truncate:
                raise PromptTruncated(f"{e}; or draw it without its end: --truncate") from e
            say("note", e)
        with ticking("drawing", len(numbers)) as tick:
            images = draw(pipe, prompt, numbers, progress=tick, **call)[0]
        names = [f"{s}.png" for s in numbers]
        for name, image in zip(names, images, strict=True):
            write_atomic(folder / name, png(Image.fromarray(image)))
        write_atomic(folder / "sheet.png", png(contact_sheet([(prompt, list(images))], across=1)))
        seen = None
        if judge is not None:
            read = judge.read(images)
            seen = [sorted(f"{f.tint} {f.glyph}" if f.tint else f.glyph for f in r.found) for r in read]
        emit({"schema": "unleak/generate/1", "prompt": prompt, "model": model, "seeds": numbers, "settings": call,
              "images": names, "seen": seen}, json_file)  # fmt: skip
        if json_file != "-":
            for i, name in enumerate(names):
                print(folder / name, *([", ".join(seen[i]) or "nothing"] if seen is not None else []), sep="\t")


@app.command()
def repair(
    prompt: str,
    items: Annotated[str, typer.Option(help="Every item of the prompt: mouse,laptop or mouse=furry mouse,laptop")],
    with_: Annotated[str, typer.Option("--with", help="auto: by trial; or patch, patch-word, boost.")] = "auto",
    only: Annotated[str | None, typer.Option(help="Of the items, repair these, whatever the judge says.")] = None,
    isolation: Annotated[str | None, typer.Option(help="Where the item's rows come from.")] = None,
    eos_pads: Annotated[str | None, typer.Option(help="What becomes of EOS and pad rows (causal encoders).")] = None,
    unequal: Annotated[str | None, typer.Option(help="When spans differ in length: error or right-align.")] = None,
    model: Model = "emoji-sd",
    judge: JudgeName = None,
    seeds: Seeds = "0:8",
    out: Folder = Path("out"),
    json_file: JsonFile = None,
    html: HtmlFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Before and after a repair, at the same seeds, judged."""
    with errors():
        from unleak.generate import parse_seeds
        from unleak.words.repair import plan

        options = {k: v for k, v in (("isolation", isolation), ("eos_pads", eos_pads), ("unequal", unequal)) if v}
        plan(prompt, items, with_=with_, only=only, **options)
        numbers = parse_seeds(seeds)
        folder = check_outputs(out, json_file, html)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        from unleak.bench.results import write_atomic
        from unleak.generate import image_size
        from unleak.report import repair as report
        from unleak.words.repair import repair as mend

        looks = judge_for(model, image_size(pipe, call), judge)
        if looks is None and only is None:
            say("note", "without a judge every item is repaired, and no rate is claimed; choose with --only")
        with ticking("drawing", 2 * len(numbers) if with_ != "auto" or looks is None else None) as tick:
            result = mend(pipe, prompt, items, with_=with_, seeds=numbers, judge=looks, only=only, model=model,
                          call=call, progress=tick, **options)  # fmt: skip
        names = report.save_images(result, folder)
        data = report.to_dict(result, names)
        emit(data, json_file)
        if html:
            write_atomic(html, report.page(result))
        if json_file != "-":
            for i in data["items"]:
                what = f"{i['text']} ({i['sense']})" if i["sense"] else i["text"]
                if looks is None:
                    print(what, "repaired" if i["repaired"] else "left", "not judged", sep="\t")
                else:
                    counts = f"{i['present_before']}/{i['seeds']} -> {i['present_after']}/{i['seeds']}"
                    print(what, "repaired" if i["repaired"] else "left", counts, sep="\t")
            print(folder / "before-after.png")
        for attempt in result.tried:
            say("tried", attempt)


@app.command()
def diagnose(
    prompt: str,
    items: Annotated[str | None, typer.Option(help="Every item: mouse,laptop; or brackets in the prompt.")] = None,
    senses: Annotated[str | None, typer.Option(help="Other senses of items: mouse=computer mouse")] = None,
    evidence: Annotated[str, typer.Option(help="failures: explain missing items; all: every item.")] = "failures",
    lens: Annotated[bool, typer.Option("--lens", help="Draw the encoder's layers, too.")] = False,
    judge: JudgeName = None,
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
    """Why is an item of the prompt wrong or missing, and what repairs it?"""
    with errors():
        from unleak.generate import parse_seeds
        from unleak.words.diagnose import check_evidence, items_of, senses_of

        check_evidence(evidence)
        others = {**known_senses(model), **senses_of(senses or "")}
        text, named = items_of(prompt, items if items is not None else known_items(model, prompt))
        numbers = parse_seeds(seeds)
        folder = check_outputs(out, json_file, html)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        from unleak.generate import image_size
        from unleak.report import diagnosis as report
        from unleak.words.diagnose import diagnose as examine

        looks = judge_for(model, image_size(pipe, call), judge)
        if looks is None:
            say("note", "without a judge the text rows are the only evidence: no verdict; look at the pictures")
        with ticking("drawing", None) as tick:
            found = examine(pipe, text, named, seeds=numbers, judge=looks, senses=others, evidence=evidence,
                            lens=(0.25, 0.5, 0.75) if lens else (), model=model, call=call, progress=tick)  # fmt: skip
        names = report.save_images(found, folder)
        emit(report.to_dict(found, names), json_file)
        if html:
            found.save(html)
        if json_file != "-":
            print(found)
            print(folder / "diagnosis.png")


@app.command("tokens")
def show_tokens(
    prompt: str,
    items: Annotated[str, typer.Option(help="Items of the prompt: hot dog,laptop")],
    model: Model = "emoji-sd",
    seeds: Seeds = "0:4",
    pad: Annotated[str, typer.Option(help="Rows elsewhere: empty, allpad, padtoken, zero or mean.")] = "empty",
    pooled: Annotated[
        str, typer.Option(help="The pooled vector: of the pad rows, the full prompt, or the item.")
    ] = "pad",
    bank: Annotated[Path | None, typer.Option(help="With --pad mean: a file of texts, one a line.")] = None,
    encoder: TokensOf = None,
    last_only: Annotated[
        bool, typer.Option("--last-only", help="Only each item's last token (causal encoders).")
    ] = False,
    judge: JudgeName = None,
    out: Folder = Path("out"),
    json_file: JsonFile = None,
    html: HtmlFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """One picture per token: which tokens of an item carry it, and which are redundant."""
    with errors():
        from unleak.generate import parse_seeds
        from unleak.words.probe import Keep
        from unleak.words.redundancy import VIEWS, check, plan
        from unleak.words.redundancy import tokens as study

        check(prompt, items)
        numbers = parse_seeds(seeds)
        texts = read_lines(bank, "--bank") if bank else []
        Keep(VIEWS["nothing"], pad=pad, pooled=pooled, bank=tuple(texts))  # refuses what cannot be
        folder = check_outputs(out, json_file, html)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        from unleak.bench.results import write_atomic
        from unleak.generate import image_size
        from unleak.report import tokens as report

        looks = judge_for(model, image_size(pipe, call), judge)
        if looks is None:
            say("note", "without a judge no token is called representative; look at the pictures")
        todo = plan(pipe, prompt, items, encoder=encoder, last_only=last_only, call=call)
        with ticking("drawing", len(todo.subsets) * len(numbers)) as tick:
            result = study(pipe, prompt, items, judge=looks, seeds=numbers, pad=pad, pooled=pooled, bank=texts,
                           encoder=encoder, last_only=last_only, model=model, call=call, progress=tick)  # fmt: skip
        data = report.to_dict(result, report.save_images(result, folder))
        emit(data, json_file)
        if html:
            write_atomic(html, report.page(result))
        if json_file != "-":
            for item in data["items"]:
                for token in item["tokens"]:
                    found = token["shows"]
                    share = f"{found['present']}/{found['seeds']}" if found else "not judged"
                    print(
                        item["text"], token["text"], share, "representative" * bool(token["representative"]), sep="\t"
                    )
            print(folder / "tokens.png")


@app.command()
def redundancy(
    file: Annotated[Path, typer.Argument(help='JSONL: {"prompt": "a hot dog and a cat", "items": ["hot dog", "cat"]}')],
    out: Annotated[Path, typer.Option("-o", "--out", help="The classifier, a safetensors file.")],
    model: Model = "emoji-sd",
    seeds: Seeds = "0:4",
    kind: Annotated[str | None, typer.Option(help="knn or linear; default: the better one.")] = None,
    extras: Annotated[bool, typer.Option("--extras", help="Also learn from place, length and norm.")] = False,
    encoder: TokensOf = None,
    judge: JudgeName = None,
    pad: Annotated[str, typer.Option(help="Rows elsewhere: empty, allpad, padtoken or zero.")] = "empty",
    pooled: Annotated[str, typer.Option(help="The pooled vector: pad, full or item.")] = "pad",
    json_file: JsonFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Train a classifier that tells redundant tokens of your encoder without drawing. Resumes where it stopped."""
    with errors():
        from unleak.generate import parse_seeds
        from unleak.words.probe import Keep
        from unleak.words.redundancy import VIEWS

        numbers = parse_seeds(seeds)
        Keep(VIEWS["nothing"], pad=pad, pooled=pooled)
        check_file(out, "--out")
        check_file(json_file, "--json")
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        from unleak.bench import redundancy as suite

        suite.check_kind(kind)
        records = suite.read_records(file)
        pipe = open_model(model)
        from unleak.generate import image_size

        looks = judge_for(model, image_size(pipe, call), judge)
        if looks is None:
            raise UnsupportedModel(f"nothing can label the tokens: {model!r} has no judge; name one with --judge")
        with err.status("reading the prompts"):
            todo = suite.plans(pipe, records, call, encoder)
        with ticking("probing", len(numbers) * sum(len(p.subsets) for p in todo)) as tick:
            result = suite.learn(pipe, todo, out, judge=looks, kind=kind, extras=extras, seeds=numbers, pad=pad,
                                 pooled=pooled, call=call, progress=tick)  # fmt: skip
        emit(result.to_dict(), json_file)
        if json_file != "-":
            print(result.table(), end="")
            print(out)


@app.command()
def lint(
    file: Annotated[str, typer.Argument(help="Prompts: text lines, .jsonl or .csv; - for stdin.")],
    items: Annotated[
        str | None,
        typer.Option(
            help="Words to look for where a prompt names none: mouse=furry mouse|computer mouse,bat; "
            "an embedded model knows its own.",
        ),
    ] = None,
    model: Model = "emoji-sd",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the JSONL here and go on with it after a kill.")
    ] = None,
    html: HtmlFile = None,
    form: Annotated[str | None, typer.Option("--format", help="text, jsonl or csv; default: by the ending.")] = None,
    column: Annotated[str, typer.Option(help="The field or column that holds the prompt.")] = "prompt",
    calibration: Annotated[Path | None, typer.Option(help="A calibration of this model's text encoders.")] = None,
    fit: Annotated[Path | None, typer.Option(help="Fit a calibration on labelled prompts and write it here.")] = None,
    fail_over: Annotated[
        float | None, typer.Option(min=0, max=1, help="Exit with status 3 if an item's risk is higher.")
    ] = None,
) -> None:
    """Which items of which prompts would leak? Reads text encodings alone and draws nothing."""
    with errors():
        from unleak.text.items import parse_items
        from unleak.words.prompt_file import format_of, opened, read_prompts

        form, watched = format_of(file, form), parse_items(items) if items else world_items(model)
        for path, option in ((out, "-o"), (html, "--html"), (fit, "--fit")):
            check_file(path, option)
            if path is not None and path.exists() and Path(file).exists() and path.samefile(file):
                raise BadInput(f"{option} {str(path)!r} is the file with the prompts: choose another")
        with opened(file) as (stream, total):
            from unleak.words import calibration as calibrations

            fitted = calibrations.read(calibration) if calibration else None
            pipe = open_model(model, text_only=True)
            from unleak.bench.results import write_atomic
            from unleak.report import lint as report
            from unleak.words.lint import Linter, calibrate

            linter, lines = Linter(pipe, fitted), read_prompts(stream, form, watched, column)
            if fit is not None:
                made = calibrate(linter, lines, Path(file).name)
                write_atomic(fit, made.to_json())
                print(fit, f"{made.leaks} of {made.items} items leak", sep="\t")
                return
            if not linter.calibrated:
                say("note", "no calibration belongs to these text encoders: the risk is a score, no probability; --fit")
            head = report.header(linter, model, file, items=items, format=form, column=column)
            show = (lambda record: print(json.dumps(record, ensure_ascii=False))) if out is None else None
            with ticking("reading", total) as tick:
                found = report.run(linter, lines, head, out, show, tick)
        if html is not None:
            write_atomic(html, report.page(found))
        if found.bad:
            numbers = [str(e["line"]) for e in found.errors] + ["..."] * (found.bad > len(found.errors))
            say("note", f"{found.bad} lines could not be used: {', '.join(numbers)}")
        if out is not None:
            for record in found.riskiest[:10]:
                worst = max(record["items"], key=lambda i: i["risk"])
                print(f"{record['risk']:.2f}", worst["text"], record["prompt"], sep="\t")
            print(out)
        if fail_over is not None and found.risk > fail_over:
            raise typer.Exit(3)


@app.command("edit")
def edit_image(
    image: Annotated[Path, typer.Argument(help="The picture: PNG, JPEG ...")],
    edits: Annotated[list[str], typer.Option("--edit", help="SRC=TGT or SRC=TGT@MASK.png; once for each object.")],
    prompt: Annotated[str | None, typer.Option(help="Caption that names every SRC; default: they joined.")] = None,
    preset: Annotated[str, typer.Option(help="The method: ale or ale-official.")] = "ale",
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    dilation: Annotated[float | None, typer.Option(help="Widen the masks, as a fraction of the height.")] = None,
    self_replace: Annotated[float | None, typer.Option(help="Share of steps that keep the layout, 0..1.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt of the target.")] = None,
    model: Model = "emoji-sd",
    out: Folder = Path("out"),
    json_file: JsonFile = None,
    html: HtmlFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Turn objects of an image into others and change nothing else."""
    with errors():
        from unleak.regions.plan import Edit, plan

        named = [Edit.parse(text) for text in edits]
        plan(named, prompt)
        if (height is None) != (width is None):
            raise BadInput("only one of --height and --width is given: give both")
        folder = check_folder(out)
        check_file(json_file, "--json", out)
        check_file(html, "--html", out)
        if html is not None and json_file == str(html):
            raise BadInput(f"--json and --html both write {json_file!r}: name two files")
        given = {"target_guidance": guidance, "dilation": dilation, "self_replace": self_replace}
        options: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        from unleak.regions import presets

        presets.preset(preset, **options)
        from unleak.regions import photo

        picture = photo.read(image)
        pipe = open_model(model)
        from unleak.bench.results import write_atomic
        from unleak.regions.check import judged
        from unleak.regions.edit import edit
        from unleak.report import edit as report

        size = None if height is None or width is None else (height, width)
        with err.status("editing"):
            result = edit(pipe, picture, named, preset=preset, steps=steps, seed=seed, source_prompt=prompt,
                          negative_prompt=negative, size=size, **options)  # fmt: skip
        judge = judge_for(model, result.image.shape[:2])
        checks = None
        if judge is not None:
            try:
                checks = judged(result, judge)
            except BadInput as e:
                say("note", f"not judged: {e}")
        data = report.to_dict(result, model, report.save_images(result, folder), checks)
        emit(data, json_file)
        if html:
            write_atomic(html, report.page(result, model, checks, judge.name if checks else None))
        if json_file != "-":
            for i, one in enumerate(result.edits):
                said = "not judged" if checks is None else "is there" if checks[i].target_after else "is not there"
                print(one.source, one.target, said, sep="\t")
            kept = data["background_psnr"]["rebuilt"]
            print("background", "none" if kept is None else kept if kept == "inf" else f"{kept:.1f} dB", sep="\t")
            print(folder / "after.png")


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
        lines = count_lines(file)
        call = call_arguments(model, num_inference_steps=inference_steps, guidance_scale=guidance,
                              height=height, width=width)  # fmt: skip
        from unleak.copies.calibrate import Calibration

        known = Calibration.load(calibration) if calibration else None
        pipe = open_model(model)
        from unleak.copies.scan import plan
        from unleak.copies.scan_file import rejects_of, scan_file
        from unleak.files import write_atomic
        from unleak.report import scan as report

        made = plan(pipe, seeds, count, detector, known, call=call)
        if known is None:
            say("note", "uncalibrated: the scores order prompts; what counts as memorized takes `unleak calibrate`")
        with ticking_to("scanning", lines) as tick:
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
        from unleak.copies.fit import calibrate as fit
        from unleak.copies.scan import DEFAULT, fits, plan

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
    gate: Annotated[Path | None, typer.Option(help="A calibration: mitigate only images that it flags.")] = None,
    preset: Annotated[str, typer.Option(help="The mitigation, one of those above.")] = "guard",
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

    Presets: guard, guard-official, attenuate, and the baselines random-token, random-number, word-repetition,
    noisy-rows, optimise-rows, mask-summary, delayed-guidance, opposite-guidance, repulsion-only, pad-swap, prss.
    """
    with errors():
        from unleak.copies.calibrate import Calibration
        from unleak.copies.presets import preset as mitigation
        from unleak.generate import check_prompt, image_size, parse_seeds
        from unleak.text.items import find_all, parse_items

        check_prompt(prompt)
        numbers = parse_seeds(seeds)
        calibration = None if gate is None else Calibration.load(gate)
        method = mitigation(preset, calibration)
        named = parse_items(items) if items is not None else ()
        find_all(prompt, named)
        folder = check_folder(out)
        check_file(json_file, "--json", out)
        check_file(html, "--html", out)
        if html is not None and json_file == str(html):
            raise BadInput(f"--json and --html both write {json_file!r}: name two files")
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        if calibration is not None:
            calibration.check(pipe)
        from unleak.copies.protect import protect
        from unleak.files import write_atomic
        from unleak.judges.copies import scene_judge
        from unleak.report import guard as report

        judge = judge_for(model, image_size(pipe, call))
        if judge is None:
            say("note", "without a judge only the images are compared; look at them")
        elif items is None:
            named = judge.named(prompt)
        with ticking("drawing", 2 * len(numbers)) as tick:
            result = protect(pipe, prompt, method, preset=preset, seeds=numbers, judge=judge, items=named, call=call,
                             copies=scene_judge() if judge else None, model=model, progress=tick)  # fmt: skip
        names = report.save_images(result, folder)
        emit(report.to_dict(result, names), json_file)
        if html:
            write_atomic(html, report.page(result))
        if json_file != "-":
            for line in report.sentences(result):
                print(line)
            print(folder / "before-after.png")


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

        results = suite.run(
            pipe, folder, model=model, split=split, seeds=numbers, limit=limit, methods=chosen,
            call=arguments, progress=tick,
        )  # fmt: skip
    print(results.table(), end="")


@bench_app.command("world")
def bench_world(
    model: Model = "emoji-sd",
    out: Folder = Path("results/world"),
    seeds: Seeds = "0:4",
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """How well an embedded model draws its world, on held-out prompts, with the judge's own error."""
    with errors():
        from unleak.bench import world

        run_suite(world, model, out, seeds, split, limit, methods, num_inference_steps=steps, guidance_scale=guidance)


@bench_app.command("words")
def bench_words(
    model: Model = "emoji-sd",
    out: Folder = Path("results/words"),
    seeds: Seeds = "0:4",
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Which repairs stop leaks between words, channel by channel, and what they cost the other object."""
    with errors():
        from unleak.bench import words

        run_suite(words, model, out, seeds, split, limit, methods, num_inference_steps=steps, guidance_scale=guidance)


@bench_app.command("copies")
def bench_copies(
    model: Model = "emoji-sd",
    out: Folder = Path("results/copies"),
    seeds: Seeds = "0:4",
    split: Split = "heldout",
    limit: Limit = None,
    methods: Methods = None,
    steps: Steps = None,
    guidance: Guidance = None,
) -> None:
    """Which detectors tell memorized captions from ordinary ones, and at what cost."""
    with errors():
        from unleak.bench import copies

        run_suite(copies, model, out, seeds, split, limit, methods, num_inference_steps=steps, guidance_scale=guidance)


if __name__ == "__main__":
    app()

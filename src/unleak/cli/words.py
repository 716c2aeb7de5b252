"""Leaks between words: diagnose, repair, tokens, redundancy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unleak.cli.console import (
    call_arguments,
    check_file,
    check_outputs,
    emit,
    err,
    errors,
    judge_for,
    known_items,
    known_senses,
    open_model,
    read_lines,
    say,
    ticking,
)
from unleak.cli.options import (
    Folder,
    Guidance,
    HtmlFile,
    JsonFile,
    JudgeName,
    Model,
    Seeds,
    Size,
    Steps,
    app,
)
from unleak.errors import UnsupportedModel

TokensOf = Annotated[str | None, typer.Option("--encoder", help="Whose tokens, e.g. text_encoder_2.")]


@app.command()
def diagnose(
    prompt: str,
    items: Annotated[str | None, typer.Option(help="Every item: mouse,laptop; or brackets in the prompt.")] = None,
    senses: Annotated[str | None, typer.Option(help="Other senses of items: mouse=computer mouse")] = None,
    evidence: Annotated[str, typer.Option(help="failures: explain missing items; all: every item.")] = "failures",
    lens: Annotated[bool, typer.Option("--lens", help="Draw the encoder's layers, too.")] = False,
    flow_images: Annotated[
        bool, typer.Option("--flow-images", help="Draw how each item changes every other's image, too.")
    ] = False,
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
        from unleak.drawing.generate import parse_seeds
        from unleak.words.diagnosis.diagnose import check_evidence, items_of, senses_of

        check_evidence(evidence)
        others = {**known_senses(model), **senses_of(senses or "")}
        text, named = items_of(prompt, items if items is not None else known_items(model, prompt))
        numbers = parse_seeds(seeds)
        folder = check_outputs(out, json_file, html)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        from unleak.drawing.generate import image_size
        from unleak.words.diagnosis.diagnose import diagnose as examine

        looks = judge_for(model, image_size(pipe, call), judge)
        if looks is None:
            say("note", "without a judge the text rows are the only evidence: no verdict; look at the pictures")
        with ticking("drawing", None) as tick:
            found = examine(pipe, text, named, seeds=numbers, judge=looks, senses=others, evidence=evidence,
                            lens=(0.25, 0.5, 0.75) if lens else (), flow_images=flow_images,
                            model=model, call=call, progress=tick)  # fmt: skip
        found.save(f"{folder}/")
        emit(found.to_dict(), json_file)
        if html:
            found.save(html)
        if json_file != "-":
            print(found)
            print(folder / "diagnosis.png")


@app.command()
def repair(
    prompt: str,
    items: Annotated[str, typer.Option(help="Every item of the prompt: mouse,laptop or mouse=furry mouse,laptop")],
    with_: Annotated[
        str, typer.Option("--with", help="auto: by trial; or a repair by name, such as patch, boost, deleaker, cutoff.")
    ] = "auto",
    only: Annotated[str | None, typer.Option(help="Of the items, repair these, whatever the judge says.")] = None,
    isolation: Annotated[str | None, typer.Option(help="Where the item's rows come from.")] = None,
    eos_pads: Annotated[str | None, typer.Option(help="What becomes of EOS and pad rows (causal encoders).")] = None,
    unequal: Annotated[str | None, typer.Option(help="When spans differ in length: error or right-align.")] = None,
    redundancy: Annotated[
        Path | None, typer.Option(help="A classifier of `unleak redundancy`: dropping such tokens is tried, too.")
    ] = None,
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
        from unleak.drawing.generate import parse_seeds
        from unleak.words.repair.repair import plan
        from unleak.words.tokens.classifier import Classifier

        redundant = Classifier.load(redundancy) if redundancy else None
        options = {k: v for k, v in (("isolation", isolation), ("eos_pads", eos_pads), ("unequal", unequal)) if v}
        plan(prompt, items, with_=with_, only=only, redundant=redundant, **options)
        numbers = parse_seeds(seeds)
        folder = check_outputs(out, json_file, html)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        from unleak.drawing.generate import image_size
        from unleak.words.repair.repair import repair as mend

        looks = judge_for(model, image_size(pipe, call), judge)
        if looks is None and only is None:
            say("note", "without a judge every item is repaired, and no rate is claimed; choose with --only")
        with ticking("drawing", 2 * len(numbers) if with_ != "auto" or looks is None else None) as tick:
            result = mend(pipe, prompt, items, with_=with_, seeds=numbers, judge=looks, only=only, redundant=redundant,
                          model=model, call=call, progress=tick, **options)  # fmt: skip
        result.save(f"{folder}/")
        data = result.to_dict()
        emit(data, json_file)
        if html:
            result.save(html)
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
        for name in [name for name in dict.fromkeys(result.by) if result.changed and name != result.method]:
            drawn = ", ".join(str(seed) for seed, one in zip(result.seeds, result.by, strict=True) if one == name)
            say("kept", f"the original image of seed {drawn}" if name == "none" else f"seed {drawn}: {name} shows more")


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
        from unleak.drawing.generate import parse_seeds
        from unleak.words.methods.probe import Keep
        from unleak.words.tokens.redundancy import VIEWS, check, plan
        from unleak.words.tokens.redundancy import tokens as study

        check(prompt, items)
        numbers = parse_seeds(seeds)
        texts = read_lines(bank, "--bank") if bank else []
        Keep(VIEWS["nothing"], pad=pad, pooled=pooled, bank=tuple(texts))  # refuses what cannot be
        folder = check_outputs(out, json_file, html)
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        pipe = open_model(model)
        from unleak.drawing.generate import image_size

        looks = judge_for(model, image_size(pipe, call), judge)
        if looks is None:
            say("note", "without a judge no token is called representative; look at the pictures")
        todo = plan(pipe, prompt, items, encoder=encoder, last_only=last_only, call=call)
        with ticking("drawing", len(todo.subsets) * len(numbers)) as tick:
            result = study(pipe, prompt, items, judge=looks, seeds=numbers, pad=pad, pooled=pooled, bank=texts,
                           encoder=encoder, last_only=last_only, model=model, call=call, progress=tick)  # fmt: skip
        result.save(f"{folder}/")
        data = result.to_dict()
        emit(data, json_file)
        if html:
            result.save(html)
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
        from unleak.drawing.generate import parse_seeds
        from unleak.words.methods.probe import Keep
        from unleak.words.tokens.redundancy import VIEWS

        numbers = parse_seeds(seeds)
        Keep(VIEWS["nothing"], pad=pad, pooled=pooled)
        check_file(out, "--out")
        check_file(json_file, "--json")
        call = call_arguments(model, num_inference_steps=steps, guidance_scale=guidance, height=height, width=width)
        from unleak.words.tokens import learn as suite

        suite.check_kind(kind)
        records = suite.read_records(file)
        pipe = open_model(model)
        from unleak.drawing.generate import image_size

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

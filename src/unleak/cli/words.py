"""Leaks between words: diagnose, repair, tokens, redundancy."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import err, note, prompts_of, say, ticking
from unleak.cli.options import (
    CALL,
    METHOD,
    MODEL,
    OUTPUT,
    Encoder,
    Items,
    PadRows,
    Pooled,
    Prompt,
    Settings,
    SomeItems,
)
from unleak.errors import UnsupportedModel
from unleak.files.outputs import Reads
from unleak.judges.embedded import known_items, known_senses

if TYPE_CHECKING:
    from unleak.text.items import Item

OtherSenses = Annotated[str | None, typer.Option("--senses", help="Other senses of items: mouse=computer mouse")]


def say_found(items: str | None, named: Sequence[Item]) -> None:
    """Note which items were found, and how, where they were to be found."""
    from unleak.text.noun_phrases import AUTO, finder

    if items == AUTO:
        note(f"items, by {finder().name}: {', '.join(map(str, named))}")


@command(*MODEL, "seeds", *CALL, "judge", *OUTPUT)
def diagnose(
    cmd: Command,
    prompt: Prompt,
    items: SomeItems = None,
    senses: OtherSenses = None,
    evidence: Annotated[str, typer.Option(help="failures: explain missing items; all: every item.")] = "failures",
    lens: Annotated[bool, typer.Option("--lens", help="Draw the encoder's layers, too.")] = False,
    flow_images: Annotated[
        bool, typer.Option("--flow-images", help="Draw how each item changes every other's image, too.")
    ] = False,
) -> None:
    """Why is an item of the prompt wrong or missing, and what repairs it?

    Some images may fail and others not: the verdict is about those that fail. --seeds auto draws until it is sure.
    Items are named by --items or by brackets in the prompt, "a [mouse] and a [laptop]"; auto finds noun phrases;
    an embedded model knows its own.
    """
    from unleak.words.diagnosis.diagnose import check_evidence, check_senses, items_of, senses_of

    check_evidence(evidence)
    given = senses_of(senses or "")
    text, named = items_of(prompt, items if items is not None else known_items(cmd.model, prompt, note))
    say_found(items, named)
    check_senses(given, named)
    others = {**known_senses(cmd.model), **given}
    numbers, call = cmd.numbers_or_auto, cmd.call
    pipe = cmd.open()
    from unleak.words.diagnosis.diagnose import diagnose as examine

    looks = cmd.looks(pipe, "without a judge the text rows are the only evidence: no verdict; look at the pictures")
    with ticking("drawing", None) as tick:
        diagnosis = examine(pipe, text, named, seeds=numbers, judge=looks, senses=others, evidence=evidence,
                            lens=(0.25, 0.5, 0.75) if lens else (), flow_images=flow_images,
                            model=cmd.model, call=call, progress=tick)  # fmt: skip
    cmd.show(diagnosis, cmd.folder / "diagnosis.png")


@command(
    *MODEL, "seeds", *CALL, "judge", *OUTPUT, seeds="0:8", presets="unleak.words.presets:REPAIRS",
    old={f"--{name}": f"--set {name.replace('-', '_')}={{}}" for name in ("isolation", "eos-pads", "unequal")},
)  # fmt: skip
def repair(
    cmd: Command,
    prompt: Prompt,
    items: Items,
    with_: Annotated[str, typer.Option("--with", "--preset", metavar="NAME", help=METHOD)] = "auto",
    settings: Settings = None,
    only: Annotated[str | None, typer.Option(help="Of the items, repair these, whatever the judge says.")] = None,
    senses: OtherSenses = None,
    redundancy: Annotated[
        Path | None,
        typer.Option(help="A classifier of `unleak redundancy`: dropping such tokens is tried, too."),
        Reads("classifier"),
    ] = None,
) -> None:
    """Before and after a repair, at the same seeds, judged. `--with auto`, the default, chooses by trial.

    Only images that lack an item are repaired; the others stay as they are. --seeds auto draws until the diagnosis is
    sure.
    """
    from unleak.words.diagnosis.diagnose import check_senses, senses_of
    from unleak.words.presets import DEFAULT, REPAIRS
    from unleak.words.repair.repair import plan
    from unleak.words.tokens.classifier import Classifier

    redundant = Classifier.load(redundancy) if redundancy else None
    options = REPAIRS[DEFAULT if with_ == "auto" else with_].parse(settings or ())
    todo = plan(prompt, items, with_=with_, seeds=cmd.seeds, only=only, redundant=redundant, **options)
    given = senses_of(senses or "")
    check_senses(given, todo.items)
    others = {**known_senses(cmd.model), **given}
    numbers, call = cmd.numbers_or_auto, cmd.call
    pipe = cmd.open()
    from unleak.words.repair.repair import repair as mend

    looks = cmd.looks(pipe)
    if looks is None and only is None:
        say("note", "without a judge every item is repaired, and no rate is claimed; choose with --only")
    with ticking("drawing", 2 * len(numbers) if with_ != "auto" or looks is None else None) as tick:
        result = mend(pipe, prompt, items, with_=with_, seeds=numbers, judge=looks, senses=others, only=only,
                      redundant=redundant, model=cmd.model, call=call, progress=tick, **options)  # fmt: skip
    if result.command is not None:
        program, verb, *rest = shlex.split(result.command)
        result.command = shlex.join([program, verb, *cmd.where, *rest])
    cmd.show(result, cmd.folder / "before-after.png")


@command(*MODEL, "seeds", *CALL, "judge", *OUTPUT, name="tokens")
def show_tokens(
    cmd: Command,
    prompt: Prompt,
    items: Items,
    pad: PadRows = "empty",
    pooled: Pooled = "pad",
    bank: Annotated[
        Path | None, typer.Option(help="With --pad mean: a file of texts, one a line."), Reads("texts")
    ] = None,
    encoder: Encoder = None,
    last_only: Annotated[
        bool, typer.Option("--last-only", help="Only each item's last token (causal encoders).")
    ] = False,
) -> None:
    """One picture per token: which tokens of an item carry it, and which are redundant."""
    from unleak.words.methods.probe import Keep
    from unleak.words.tokens.redundancy import VIEWS, check, plan
    from unleak.words.tokens.redundancy import tokens as study

    check(prompt, items)
    texts = prompts_of(bank) if bank else []
    Keep(VIEWS["nothing"], pad=pad, pooled=pooled, bank=tuple(texts))  # refuses what cannot be
    numbers, call = cmd.numbers, cmd.call
    pipe = cmd.open()

    looks = cmd.looks(pipe, "without a judge no token is called representative; look at the pictures")
    todo = plan(pipe, prompt, items, encoder=encoder, last_only=last_only, call=call)
    with ticking("drawing", len(todo.subsets) * len(numbers)) as tick:
        result = study(pipe, prompt, items, judge=looks, seeds=numbers, pad=pad, pooled=pooled, bank=texts,
                       encoder=encoder, last_only=last_only, model=cmd.model, call=call, progress=tick)  # fmt: skip
    cmd.show(result, cmd.folder / "tokens.png")


@command(*MODEL, "seeds", *CALL, "judge", "out", "json", out=...)
def redundancy(
    cmd: Command,
    file: Annotated[
        Path,
        typer.Argument(help='JSONL: {"prompt": "a hot dog and a cat", "items": ["hot dog", "cat"]}'),
        Reads("prompts"),
    ],
    kind: Annotated[str | None, typer.Option(help="knn or linear; default: the better one.")] = None,
    extras: Annotated[bool, typer.Option("--extras", help="Also learn from place, length and norm.")] = False,
    encoder: Encoder = None,
    pad: PadRows = "empty",
    pooled: Pooled = "pad",
) -> None:
    """Train a classifier that tells redundant tokens of your encoder without drawing. Resumes where it stopped."""
    from unleak.words.methods.probe import Keep
    from unleak.words.tokens.redundancy import VIEWS

    Keep(VIEWS["nothing"], pad=pad, pooled=pooled)
    numbers, call, out = cmd.numbers, cmd.call, cmd.out
    from unleak.words.tokens import learn as suite

    suite.check_kind(kind)
    records = suite.read_records(file)
    pipe = cmd.open()
    looks = cmd.looks(pipe)
    if looks is None:
        raise UnsupportedModel(f"nothing can label the tokens: {cmd.model!r} has no judge; name one with --judge")
    with err.status("reading the prompts"):
        todo = suite.plans(pipe, records, call, encoder)
    with ticking("probing", len(numbers) * sum(len(p.subsets) for p in todo)) as tick:
        result = suite.learn(pipe, todo, out, judge=looks, kind=kind, extras=extras, seeds=numbers, pad=pad,
                             pooled=pooled, call=call, progress=tick)  # fmt: skip
    cmd.put(result.to_dict(), [result.table().rstrip("\n"), str(out)])


@command(*MODEL, "seeds", *CALL, *OUTPUT)
def maps(
    cmd: Command,
    prompt: Prompt,
    items: SomeItems = None,
    sites: Annotated[
        str | None, typer.Option(help="Attention sites by name or glob; default: all that read text.")
    ] = None,
) -> None:
    """Draw a prompt and see where the picture reads each item; the images stay bitwise what they are.

    Items are named by --items or by brackets in the prompt, "a [mouse] and a [laptop]"; auto finds noun phrases;
    an embedded model knows its own.
    """
    from unleak.words.diagnosis.diagnose import items_of

    text, named = items_of(prompt, items if items is not None else known_items(cmd.model, prompt, note))
    say_found(items, named)
    seeds, call, pipe = cmd.numbers, cmd.call, cmd.open()
    from unleak.words.attention_maps import maps as draw

    with ticking("drawing", len(seeds)) as tick:
        result = draw(pipe, text, named, seeds=seeds, sites=sites, model=cmd.model, call=call, progress=tick)
    cmd.show(result, cmd.folder / "maps.png")

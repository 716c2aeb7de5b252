"""`unleak redundancy`: learn which tokens are redundant for the user's own encoder.

Each prompt of a JSONL file is probed token by token and the judge makes the labels; finished prompts are kept, so
that an interrupted run goes on where it stopped. Then both classifiers are trained and cross-validated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unleak.core.anatomy import Anatomy
from unleak.errors import BadInput, choose
from unleak.files.atomic import write_atomic
from unleak.files.parts import Parts
from unleak.files.prompt_file import format_of, opened
from unleak.files.provenance import versions
from unleak.judges import Judge
from unleak.text.encode import fingerprint
from unleak.text.items import Item
from unleak.words.lint.prompt_file import read_prompts
from unleak.words.tokens.classifier import KINDS, SCHEMA, Classifier, features, read_by
from unleak.words.tokens.learning import Examples, train
from unleak.words.tokens.redundancy import FEWEST, RATE, TokenPlan, TokenStudy, check, plan, tokens

Record = tuple[str, tuple[Item, ...]]
"""A prompt and its items."""


@dataclass
class Trained:
    """Both classifiers, the chosen kind, and what became of the items of the file."""

    classifiers: dict[str, Classifier]
    chosen: str
    counts: dict[str, int]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        reports = {
            kind: {"setting": c.setting, "threshold": c.threshold, **c.report} for kind, c in self.classifiers.items()
        }
        head = {"schema": SCHEMA, "chosen": self.chosen, "items": self.counts, "settings": self.settings}
        return {**head, "classifiers": reports, "versions": versions()}

    def table(self) -> str:
        """Both classifiers under cross-validation as a markdown table; the chosen one is marked."""
        lines = [
            "| classifier | precision | recall | accuracy | redundant | tokens | items |",
            "|---|---|---|---|---|---|---|",
        ]
        for kind, c in self.classifiers.items():
            r = c.report
            shares = (_percent(r[n]) for n in ("precision", "recall", "accuracy", "base_rate"))
            name = f"{kind} (chosen)" if kind == self.chosen else kind
            lines.append(f"| {name} | {' | '.join(shares)} | {r['tokens']} | {r['items']} |")
        return "\n".join(lines) + "\n"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def check_kind(kind: str | None) -> None:
    """Raises BadInput for a classifier that there is not."""
    if kind is not None:
        choose("classifier", kind, KINDS)


def read_records(file: Path) -> list[Record]:
    """Prompts and items of a file. Raises BadInput with the first line that is wrong."""
    records = []
    form = format_of(file)
    with opened(str(file), form) as (stream, _):
        for one in read_prompts(stream, form, name=repr(str(file))):
            try:
                if one.error is not None:
                    raise BadInput(one.error)
                records.append((one.prompt, check(one.prompt, one.items)[0]))
            except BadInput as e:
                raise BadInput(f"{file}, line {one.number}: {e}") from e
    if not records:
        raise BadInput(f'{file} holds no prompts: write {{"prompt": "a hot dog and a cat", "items": ["hot dog"]}}')
    return records


def plans(pipe: Any, records: Sequence[Record], call: dict[str, Any], encoder: str | None = None) -> list[TokenPlan]:
    """What must be drawn for each record, by the tokens of one encoder (default: the first record's finest cut).

    Raises whatever is wrong with a record before anything is drawn.
    """
    planned: list[TokenPlan] = []
    for prompt, items in records:
        encoder = planned[0].encoder if planned else encoder
        planned.append(plan(pipe, prompt, items, encoder=encoder, labels_only=True, call=call))
    return planned


def learn(
    pipe: Any,
    planned: Sequence[TokenPlan],
    out: Path,
    *,
    judge: Judge,
    kind: str | None = None,
    extras: bool = False,
    seeds: Sequence[int] = range(FEWEST),
    pad: str = "empty",
    pooled: str = "pad",
    call: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Trained:
    """Label by probing, train, and write the classifier to `out` (labels to the folder ``out.labels``).

    Args:
        planned: what `plans` says of the records.
        kind: "knn" or "linear"; default: the one that reaches the precision with the greater recall.
        extras: see `unleak.words.tokens.classifier.features`.
        progress: is told how many images were drawn or found done.

    Raises:
        BadInput: the judge cannot read an item, or too few items are left to learn from.
    """
    check_kind(kind)
    call, seeds = dict(call or {}), list(seeds)
    settings = {"judge": judge.name, "encoder": planned[0].encoder, "seeds": seeds, "pad": pad, "pooled": pooled,
                "call": call}  # fmt: skip
    labelled = labels(pipe, planned, Parts(Path(f"{out}.labels")), judge=judge, settings=settings, progress=progress)
    trained, counts = classifiers(pipe, planned, labelled, extras, call)
    chosen = kind or max(trained, key=lambda k: _merit(trained[k].report))
    write_atomic(out, trained[chosen].to_bytes())
    return Trained(trained, chosen, counts, {**settings, "extras": extras})


Labels = list[list[bool] | str]
"""Per item of a prompt: which of its tokens are redundant, or why it teaches nothing (`REASONS`)."""

REASONS = ("single_token", "seen_in_nothing", "not_drawn")


def labels(
    pipe: Any,
    planned: Sequence[TokenPlan],
    parts: Parts,
    *,
    judge: Judge,
    settings: dict[str, Any],
    progress: Callable[[int], None] | None = None,
) -> list[Labels]:
    """What probing says of every planned prompt; finished prompts are reused.

    Args:
        settings: `seeds`, `pad`, `pooled`, `encoder` and `call` of `unleak.tokens`, and the judge's name.

    Raises BadInput: the judge cannot read an item.
    """
    for todo in planned:
        judge.senses(todo.named)
    call = settings["call"]
    weights = {"denoiser": fingerprint(Anatomy.of(pipe).denoiser), **read_by(pipe, planned[0].prompt, **call)}
    options = {name: value for name, value in settings.items() if name != "judge"}
    label = partial(tokens, pipe, judge=judge, labels_only=True, **options)
    labelled = []
    for i, todo in enumerate(planned):
        inputs = [weights, settings, todo.prompt, list(map(str, todo.named))]
        labelled.append(parts.get(f"{i:06d}", inputs, lambda p=todo: _labels(label(p.prompt, p.named))))  # type: ignore[misc]
        if progress:
            progress(len(todo.subsets) * len(settings["seeds"]))
    return labelled


def classifiers(
    pipe: Any, planned: Sequence[TokenPlan], labelled: Sequence[Labels], extras: bool, call: dict[str, Any]
) -> tuple[dict[str, Classifier], dict[str, int]]:
    """Both kinds, trained on the labels, and what became of the items. Raises BadInput where nothing can be learnt."""
    counts, used = dict.fromkeys(("used", *REASONS), 0), []
    for todo, each in zip(planned, labelled, strict=True):
        for item, redundant in zip(todo.named, each, strict=True):
            counts[redundant if isinstance(redundant, str) else "used"] += 1
            if not isinstance(redundant, str):
                used.append((todo.prompt, item, redundant))
    encoder, readers = planned[0].encoder, read_by(pipe, planned[0].prompt, **call)
    examples = _examples(pipe, used, encoder, extras, call)
    return {k: train(examples, k, encoder, readers, extras) for k in KINDS}, counts


def _labels(study: TokenStudy) -> Labels:
    out: Labels = []
    for i, item in enumerate(study.plan.items):
        control = study.hits(i, "nothing")
        carries = [bool(study.representative(i, k)) for k in range(len(item.tokens))]
        if len(item.tokens) == 1:
            out.append("single_token")
        elif control is not None and control.mean() >= RATE:
            out.append("seen_in_nothing")
        else:
            out.append([not c for c in carries] if any(carries) else "not_drawn")
    return out


def _examples(
    pipe: Any, labelled: Sequence[tuple[str, Item, list[bool]]], encoder: str, extras: bool, call: dict[str, Any]
) -> Examples:
    if not labelled:
        raise BadInput("no item of the file has several tokens and is drawn from one of them: nothing can be learnt.")
    rows = features(pipe, [f[0] for f in labelled], [f[1] for f in labelled], encoder, extras, **call)
    names = [item.text.casefold() for _, item, labels in labelled for _ in labels]
    redundant = [label for _, _, labels in labelled for label in labels]
    return Examples(np.concatenate(rows), np.array(redundant, bool), np.array(names))


def _merit(report: dict[str, Any]) -> tuple[bool, float]:
    return (report["precision"] or 0.0) >= report["asked"], report["recall"]

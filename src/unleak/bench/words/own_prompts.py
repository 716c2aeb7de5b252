"""`unleak bench words --prompts FILE`: the same questions on the user's own prompts, model and judge.

Nobody knows here which items will leak, so a diagnosis of other seeds decides what is repaired: an item that it calls
a leak or neglected. The repairs are measured on seeds that this choice has not seen, so that they gain nothing by
chance. Every method draws the same prompts from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from unleak.bench.results import Results
from unleak.bench.rows import Row, share
from unleak.bench.run import Run
from unleak.bench.words import flow, own_repairs, tokens
from unleak.drawing.generate import rehearse
from unleak.errors import BadInput, choose
from unleak.files.prompt_file import format_of, opened
from unleak.judges import Judge
from unleak.words.diagnosis.diagnose import diagnose
from unleak.words.diagnosis.flow import flow as flow_between
from unleak.words.diagnosis.neglect import VERDICTS
from unleak.words.lint.prompt_file import read_prompts
from unleak.words.repair.automatic import held_out_seeds
from unleak.words.tokens.learn import Record
from unleak.words.tokens.redundancy import check as check_items

DIAGNOSIS = "diagnosis"
METHODS = (DIAGNOSIS, *own_repairs.METHODS, *tokens.METHODS, *flow.METHODS)


def check(methods: Sequence[str] | None) -> None:
    """Refuse a method that does not exist. Raises BadInput."""
    for name in methods or ():
        choose("method for prompts of a file", name, METHODS)


def read(file: Path, limit: int | None = None) -> tuple[list[Record], list[str]]:
    """The usable prompts of a file, at most `limit`, and what is wrong with the others.

    As in `unleak.words.lint.prompt_file`; JSON also as Attend-and-Excite publishes it: lists by name of
    ``{"prompt": "a dog and a frog", "indices": [2, 5]}``, words counted from 1.

    Raises BadInput where no prompt can be used.
    """
    form = format_of(file)
    with opened(str(file), form) as (stream, _):
        lines = list(islice(read_prompts(stream, form, name=repr(str(file))), limit))
    records = [(one.prompt, one.items) for one in lines if one.error is None]
    if not records:
        raise BadInput(f"{file} holds no prompt with items" + (f": {lines[0].error}" if lines else ""))
    return records, [f"{file.name}, {one.number}: {one.error}" for one in lines if one.error is not None]


def run(
    pipe: Any,
    out: Path,
    records: Sequence[Record],
    judge: Judge,
    *,
    model: str = "",
    source: str = "prompts",
    seeds: Sequence[int] = range(4),
    methods: Sequence[str] | None = None,
    call: dict[str, Any] | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Measure the chosen methods (default: all) on prompts with their items; finished parts are reused.

    Args:
        source: where the prompts come from, for the results.
        notes: what is to stand beside the figures, such as lines of the file that could not be used.

    Raises BadInput: of no prompt the judge can read the items, and the encoders the end.
    """
    check(methods)
    chosen = [name for name in METHODS if methods is None or name in methods]
    one = Run(pipe, out, model, source, list(seeds), None, dict(call or {}), progress, list(notes))
    usable = _usable(one, records, judge)
    results = Results("words", model, one.seeds, source, {"name": judge.name}, notes=one.notes)
    repairs = [name for name in chosen if name in own_repairs.METHODS]
    if repairs or DIAGNOSIS in chosen:
        verdicts = judged(one, usable, judge)
        results.rows += counted(verdicts)
        if repairs:
            results.rows += own_repairs.rows(one, repairs, usable, verdicts, judge)
    if token_methods := [name for name in chosen if name in tokens.METHODS]:
        results.rows += tokens.measured(one, token_methods, usable, ["prompts"] * len(usable), judge)
    if set(chosen) & set(flow.METHODS):
        pairs = [record for record in usable if len(record[1]) == 2]
        named = [[prompt, list(map(str, items))] for prompt, items in pairs]
        if pairs:
            results.rows += flow.measured(one, "pair", pairs, named, lambda r: flow_between(pipe, *r, call=one.call))
    results.save(out)
    return results


def _usable(run: Run, records: Sequence[Record], judge: Judge) -> list[Record]:
    """The prompts that the encoders read whole and whose items the judge can look for; the others are noted."""
    usable = []
    for prompt, items in records:
        try:
            judge.senses(check_items(prompt, items)[0])
            rehearse(run.pipe, prompt, **run.call)
            usable.append((prompt, items))
        except BadInput as e:
            run.notes.append(f"left out: {prompt!r}: {e}")
    if not usable:
        raise BadInput(f"no prompt can be used; {run.notes[-1]}")
    return usable


def judged(run: Run, records: Sequence[Record], judge: Judge) -> list[list[str]]:
    """The verdict on every item of every prompt, from other seeds than those of the run."""
    tick, by_prompt = run.ticking(DIAGNOSIS, len(records)), []
    for i, (prompt, items) in enumerate(records):

        def verdicts(prompt: str = prompt, items: Any = items) -> list[str | None]:
            findings = diagnose(
                run.pipe, prompt, items, seeds=held_out_seeds(run.seeds), judge=judge, after=False, call=run.call
            ).findings
            return [finding.verdict for finding in findings]

        by_prompt.append(
            run.part(f"{DIAGNOSIS}-{i:05d}", [judge.name, prompt, list(map(str, items))], verdicts, [diagnose])
        )
        tick(1)
    return by_prompt


def counted(verdicts: Sequence[Sequence[str]]) -> list[Row]:
    """`verdict_share`: of all items those with each verdict."""
    every = [verdict for each in verdicts for verdict in each]
    return [share([verdict == name for verdict in every], DIAGNOSIS, name, "verdict_share") for name in VERDICTS]

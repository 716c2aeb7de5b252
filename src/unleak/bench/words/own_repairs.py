"""Repairs on the user's own prompts: which items are there before and after, what else changes, and what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from unleak.bench.rows import Row, mean, share
from unleak.bench.run import Run
from unleak.bench.words.repairs import AUTO, NAMED, PRESETS, Variant, counting, repaired_by
from unleak.bench.words.repairs import METHODS as WORLD
from unleak.drawing.drawing import Drawing
from unleak.errors import UnleakError, UnsupportedModel
from unleak.judges import Judge
from unleak.stats.intervals import mcnemar
from unleak.text.items import Item
from unleak.words.repair.repair import repair
from unleak.words.tokens.learn import Record

#: every repair; those with "+sense" act where the file says which sense of a broken item is intended
METHODS = {name: WORLD[name] for name in ("none", *PRESETS, *NAMED, AUTO)}
COSTS = ("encoder_rows", "denoiser_rows")


class Drawn(NamedTuple):
    """One prompt before and after: the verdicts on its items, and [S, items] of bool, which are there."""

    verdicts: Sequence[str]
    before: np.ndarray
    after: np.ndarray

    def of(self, *verdicts: str) -> list[int]:
        """The items with one of these verdicts."""
        return [i for i, verdict in enumerate(self.verdicts) if verdict in verdicts]


def rows(
    run: Run, methods: Sequence[str], records: Sequence[Record], verdicts: Sequence[Sequence[str]], judge: Judge
) -> list[Row]:
    """Every method beside "none", on the prompts with an item that is leaked or neglected; finished ones are reused.

    Of all prompts, without a repair: `item_presence`, and `prompt_accuracy`, all items on half of the images or more.
    """
    plain = [measured(run, "none", i, record, (), judge) for i, record in enumerate(records)]
    before = [np.array(one["there"], bool) for one in plain]
    figures = [
        share(before, "none", "all", "item_presence"),
        share([_right(b) for b in before], "none", "all", "prompt_accuracy"),
    ]
    broken = [i for i, each in enumerate(verdicts) if {"leak", "neglect"} & set(each)]
    if not broken:
        run.notes.append("repairs: the diagnosis calls no item leaked or neglected, so there is nothing to repair")
        return figures
    figures += presence("none", [Drawn(verdicts[i], before[i], before[i]) for i in broken])
    for method in (m for m in methods if m != "none"):
        tick, drawn, costs = run.ticking(method, len(broken)), list[Drawn](), []
        failed: list[str] = []
        for i in broken:
            tick(1)
            items = records[i][1]
            bad = [item for item, verdict in zip(items, verdicts[i], strict=True) if verdict in ("leak", "neglect")]
            if METHODS[method].sense and not any(item.sense for item in bad):
                continue
            try:
                one = measured(run, method, i, records[i], bad, judge)
            except UnsupportedModel as e:
                failed = [str(e)]
                break
            except UnleakError as e:  # of this prompt: an item of other length, a single item
                failed.append(f"{records[i][0]!r}: {e}")
                continue
            drawn.append(Drawn(verdicts[i], before[i], np.array(one["there"], bool)))
            costs.append([one[name] for name in COSTS])
        if failed:
            run.notes.append(f"{method}: {len(failed)} prompts could not be repaired, such as {failed[0]}")
        if drawn:
            figures += presence(method, drawn) + changes(method, drawn)
            figures += [mean([cost[k] for cost in costs], method, "repaired", name) for k, name in enumerate(COSTS)]
        elif not failed:
            run.notes.append(f"{method}: no broken item has a sense in the file")
    return figures


def measured(run: Run, method: str, i: int, record: Record, broken: Sequence[Item], judge: Judge) -> dict[str, Any]:
    """`there`: [S, items] of bool after the repair of the broken items; `COSTS`: batch rows for one image."""
    prompt, items = record

    def drawn() -> dict[str, Any]:
        with counting(run.pipe) as counts:
            there = _there(run, METHODS[method], record, broken, judge)
        return {"there": there.tolist(), **{name: n / len(run.seeds) for name, n in counts.items()}}

    inputs = [asdict(METHODS[method]), judge.name, prompt, list(map(str, items)), list(map(str, broken))]
    outcome: dict[str, Any] = run.part(f"{method.replace('+', '_')}-{i:05d}", inputs, drawn, METHODS[method].code)
    return outcome


def _there(run: Run, variant: Variant, record: Record, broken: Sequence[Item], judge: Judge) -> np.ndarray:
    prompt, items = record
    if broken and variant.preset == AUTO:
        repaired = repair(run.pipe, prompt, items, seeds=run.seeds, judge=judge, call=run.call)
        return judge.present(repaired.after, items)
    named = list(broken) if variant.sense else [replace(item, sense=None) for item in broken]
    others = [replace(item, sense=None) for item in items if item not in broken]
    repairs = [repaired_by(variant.preset, named, others, variant.parameters)] if broken and variant.preset else []
    return judge.present(Drawing(run.pipe, run.seeds, run.call).images(prompt, *repairs), items)


def _right(there: np.ndarray) -> bool:
    return bool(there.all(1).mean() >= 0.5)


def presence(method: str, drawn: Sequence[Drawn]) -> list[Row]:
    """`leak_rate`, `neglect_rate`: of the images, those without an item that was called so on other seeds."""
    rows = []
    for verdict in ("leak", "neglect"):
        missing = [~one.after[:, one.of(verdict)] for one in drawn if one.of(verdict)]
        if missing:
            rows.append(share(missing, method, "all", f"{verdict}_rate"))
    return rows


def changes(method: str, drawn: Sequence[Drawn]) -> list[Row]:
    """What a repair changes on the prompts that it acts on ("repaired"), paired by prompt.

    `item_presence_before`, `item_presence_after`: of all items. `presence_gain` of the broken ones, `harm_other` of
    those that were fine. `prompt_mcnemar_p`: exact and two-sided, over prompts that are right before and after.
    """
    rows = [
        share([getattr(one, when) for one in drawn], method, "repaired", f"item_presence_{when}")
        for when in ("before", "after")
    ]
    for name, verdicts in (("presence_gain", ("leak", "neglect")), ("harm_other", ("ok",))):
        gains = [
            (one.after[:, at].astype(float) - one.before[:, at]).mean() for one in drawn if (at := one.of(*verdicts))
        ]
        if gains:
            rows.append(mean(gains, method, "repaired", name, (-1.0, 1.0)))
    right = np.array([[_right(one.before), _right(one.after)] for one in drawn])
    fixed, lost, p = mcnemar(right[:, 0], right[:, 1])
    return [*rows, Row.exact(p, method, "repaired", "prompt_mcnemar_p", fixed + lost)]

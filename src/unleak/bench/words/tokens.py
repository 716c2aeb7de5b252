"""The token half of `unleak bench words`: where items of several tokens sit, and what dropping the others does.

Prompts are expressions ("hot dog") and coloured objects ("blue car") in held-out contexts. Every token of an item is
drawn alone (`unleak.words.tokens.redundancy`); the labels train the classifiers under cross-validation whose folds
share no item. Pruning is measured on other seeds than those that labelled the tokens, so that it is not chosen on
what it is judged by.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_

import numpy as np

from unleak.bench.rows import SHARE, Row, mean, paired_difference, share
from unleak.bench.run import Run
from unleak.core.intervention import Intervention
from unleak.drawing.drawing import Drawing
from unleak.errors import BadInput
from unleak.files.parts import Parts
from unleak.files.provenance import code_of
from unleak.judges import Judge
from unleak.judges.glyphs import glyph_judge
from unleak.stats.intervals import mcnemar
from unleak.text.items import Item
from unleak.text.subsets import Subset
from unleak.words.methods.prune import Prune
from unleak.words.repair.automatic import held_out_seeds
from unleak.words.tokens.classifier import Classifier
from unleak.words.tokens.learn import Labels, Record, classifiers, labels, plans
from unleak.words.tokens.redundancy import FEWEST, TokenPlan

METHODS = DEFAULT = ("tokens", "prune", "classifier")
#: kind of prompt -> how many
KINDS = {"expression": 60, "colour": 40}


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """Rows of the chosen methods on the prompts of the world."""
    cases = [(kind, case) for kind, n in KINDS.items() for case in run.cases(kind, n)]
    records = [(c.prompt, tuple(Item.of(t.phrase) for t in c.things)) for _, c in cases]
    return measured(run, methods, records, [kind for kind, _ in cases], glyph_judge())


def measured(
    run: Run, methods: Sequence[str], records: Sequence[Record], kinds: Sequence[str], judge: Judge
) -> list[Row]:
    """Rows of the chosen methods on prompts with their items, each of its kind; all rest on the same labels."""
    seeds = [*run.seeds, *(s for s in range(2 * FEWEST) if s not in run.seeds)][: max(FEWEST, len(run.seeds))]
    if seeds != run.seeds:
        run.notes.append(f"tokens: probed with seeds {seeds}, since fewer cannot say which are representative")
    planned = plans(run.pipe, records, run.call)
    settings = {"judge": judge.name, "encoder": planned[0].encoder, "seeds": seeds, "pad": "empty",
                "pooled": "pad", "call": run.call}  # fmt: skip
    tick = run.ticking("tokens", len(seeds) * sum(len(p.subsets) for p in planned))
    parts = Parts(run.out / "tokens", run.notes.append, [run.code, code_of(labels)])
    labelled = labels(run.pipe, planned, parts, judge=judge, settings=settings, progress=tick)
    figures: list[Row] = []
    if "tokens" in methods:
        figures += representative(labelled, kinds)
    if "prune" in methods:
        figures += pruned(run, planned, labelled, seeds, held_out_seeds(seeds), judge)
    if "classifier" in methods:
        try:
            learners, _ = classifiers(run.pipe, planned, labelled, False, run.call)
            figures += [row for kind, one in learners.items() for row in learnt(kind, one)]
        except BadInput as e:
            run.notes.append(f"classifier: {e}")
    return figures


def representative(labels: Sequence[Labels], kinds: Sequence[str]) -> list[Row]:
    """Shares over items of several tokens, those left out that the judge sees in pad rows alone.

    `seen_in_nothing`: those. `representative_share`: of items, those with a representative token; of tokens, the mean
    over items of the share that is. `redundant_share`: of tokens of items that have a representative one.
    """
    rows: list[Row] = []
    every = [
        (kind, label)
        for kind, labelled in zip(kinds, labels, strict=True)
        for label in labelled
        if label != "single_token"
    ]
    for subset in ("all", *KINDS):
        items = [label for kind, label in every if subset in ("all", kind)]
        if not items:
            continue
        rows.append(share([label == "seen_in_nothing" for label in items], "tokens", subset, "seen_in_nothing"))
        shares = [_share(label) for label in items if label != "seen_in_nothing"]
        if shares:
            rows.append(share([s > 0 for s in shares], "tokens", f"{subset}/items", "representative_share"))
            rows.append(mean(shares, "tokens", f"{subset}/tokens", "representative_share", SHARE))
        if any(shares):
            rows.append(mean([1 - s for s in shares if s], "tokens", f"{subset}/tokens", "redundant_share", SHARE))
    return rows


def _share(label: list[bool] | str) -> float:
    """Of an item's tokens, the share that is representative."""
    return 0.0 if isinstance(label, str) else float(np.mean(np.logical_not(label)))


def pruned(
    run: Run,
    planned: Sequence[TokenPlan],
    labels: Sequence[Labels],
    tried: list[int],
    seeds: list[int],
    judge: Judge,
) -> list[Row]:
    """Accuracy on `seeds` with and without redundant tokens, on prompts that have some; see `pruning`.

    Subset "redundant" is all of them. "verified" is those on which pruning lost nothing on the seeds `tried`: a user
    who prunes would look, and so does `unleak.repair`.
    """
    jobs = [(plan, prune) for plan, each in zip(planned, labels, strict=True) if (prune := redundant(plan, each))]
    if not jobs:
        run.notes.append("prune: no prompt has a redundant token")
        return []
    tick = run.ticking("prune", 2 * (len(tried) + len(seeds)) * len(jobs))

    def drawn(plan: TokenPlan, on: list[int], *interventions: Intervention) -> list[bool]:
        images = Drawing(run.pipe, on, run.call, progress=tick).images(plan.prompt, *interventions)
        there: list[bool] = np.all(judge.present(images, plan.named), axis=1).tolist()
        return there

    def both(name: str, on: list[int]) -> np.ndarray:
        """[P, 2, S]: all items are there, before and after."""
        each = []
        for i, (plan, prune) in enumerate(jobs):
            compute = lambda p=plan, r=prune: [drawn(p, on), drawn(p, on, r)]  # noqa: E731
            each.append(run.part(f"{name}-{i:04d}", [on, plan.prompt, prune.to_dict()], compute, [Prune]))
        return np.array(each, bool)

    trial, images = both("prune-trial", tried), both("prune", seeds)
    kept = trial[:, 1].sum(-1) >= trial[:, 0].sum(-1)
    return pruning(images, "redundant") + (pruning(images[kept], "verified") if kept.any() else [])


def redundant(plan: TokenPlan, labels: Labels) -> Prune | None:
    """The repair that drops what probing called redundant; None if that is nothing."""
    gone = [
        Subset.token(item, k, plan.encoder)
        for item, label in zip(plan.named, labels, strict=True)
        if not isinstance(label, str)
        for k, yes in enumerate(label)
        if yes
    ]
    return Prune(reduce(or_, gone)) if gone else None


def pruning(images: np.ndarray, subset: str = "redundant") -> list[Row]:
    """Rows from [P, 2, S]: all items are there, before and after.

    A prompt counts as right if all its items are there on half of the images or more: `prune_accuracy_before`,
    `prune_accuracy_after`; `prune_unaffected` and `prune_improved` of those that were right and wrong before;
    `prune_mcnemar_p`, exact and two-sided, n being the prompts that changed. `prune_gain` is in images, paired.
    """
    before, after = (images.mean(-1) >= 0.5).T
    fixed, broken, p = mcnemar(before, after)
    rows = [
        share(before, "prune", subset, "prune_accuracy_before"),
        share(after, "prune", subset, "prune_accuracy_after"),
        paired_difference(images[:, 0], images[:, 1], "prune", subset, "prune_gain", SHARE),
        Row.exact(p, "prune", subset, "prune_mcnemar_p", fixed + broken),
    ]
    for name, given in (("prune_unaffected", before), ("prune_improved", ~before)):
        if given.any():
            rows.append(share(after[given], "prune", subset, name))
    return rows


def learnt(kind: str, classifier: Classifier) -> list[Row]:
    """Precision, recall and base rate of "redundant" on items that training did not see, with Wilson intervals."""
    report = classifier.report
    tokens, called = report["tokens"], report["called"]
    true = round(report["base_rate"] * tokens)
    right = round((report["precision"] or 0.0) * called)
    counts = {"classifier_precision": (right, called), "classifier_recall": (right, true),
              "classifier_base_rate": (true, tokens)}  # fmt: skip
    return [share(np.arange(n) < k, kind, "grouped", name) for name, (k, n) in counts.items() if n]

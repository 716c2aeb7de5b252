"""`unleak bench words`: do repairs stop leaks between words, and what do they break?

On held-out trigger prompts ("a mouse and a laptop") the intended sense is the one that the word has alone. A leak
is an image without it. Every method draws the same prompts from the same noise; harm is what the other object,
and prompts that never leaked, lose. Methods are `Patch` with and without the name of the intended sense, with
single channels of it and with other policies, beside writing that name into the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from unleak.bench.results import Parts, Results
from unleak.bench.stats import Row, mean, paired_difference, share
from unleak.bench.world import judge_accuracy
from unleak.core.anatomy import Anatomy
from unleak.core.session import attach
from unleak.errors import BadInput
from unleak.generate import generate
from unleak.judges.glyphs import glyph_judge
from unleak.text.encode import fingerprint
from unleak.text.items import Item
from unleak.text.phrases import rename
from unleak.words.repairs import Patch
from unleak.world import load as load_world
from unleak.world.prompts import Case, check_split, prompts

#: method -> arguments of Patch. `sense` names the item by its unambiguous name ("mouse=furry mouse"); `rewrite`
#: writes that name into the prompt instead, the baseline that needs no unleak. After ":" the policy for EOS and
#: pads, after "/" the only rows that change.
METHODS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "rewrite": {"sense": True, "rewrite": True},
    "patch": {},
    "patch+sense": {"sense": True},
    "patch+sense/item": {"sense": True, "rows": ("item",)},
    "patch+sense/context": {"sense": True, "rows": ("context",)},
    "patch+sense/eos": {"sense": True, "rows": ("eos",)},
    "patch+sense/pads": {"sense": True, "rows": ("pads",)},
    "patch+sense/eos+pads": {"sense": True, "rows": ("eos", "pads")},
    "patch+sense/item+eos+pads": {"sense": True, "rows": ("item", "eos", "pads")},
    "patch+sense:renamed": {"sense": True, "eos_pads": "renamed"},
    "patch:keep": {"eos_pads": "keep", "isolation": "bare"},
    "patch:item": {"eos_pads": "item", "isolation": "bare"},
    "patch:masked-context": {"eos_pads": "masked-context", "isolation": "masked-context"},
    "patch:mean-of-items": {"eos_pads": "mean-of-items", "isolation": "bare"},
    "patch:round-robin": {"eos_pads": "round-robin", "isolation": "bare"},
    "patch:difference": {"eos_pads": "difference", "isolation": "masked-context"},
    "patch:attn-mask": {"eos_pads": "attn-mask", "isolation": "attn-mask"},
}
#: what runs without --methods; the other policies are there to be compared
DEFAULT = tuple(m for m in METHODS if not m.startswith("patch:"))


def outcomes(
    pipe: Any,
    cases: Sequence[Case],
    seeds: Sequence[int],
    options: dict[str, Any] | None,
    call: dict[str, Any],
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[P, S, 2] of bool: the polyseme's own sense is there; every other item is there.

    A lone word has no company to leak from and is drawn as it is.
    """
    world, judge = load_world(), glyph_judge()
    arguments = dict(options or {})
    sense, rewrite = arguments.pop("sense", False), arguments.pop("rewrite", False)

    def company(case: Case) -> list[str]:
        return [t.phrase for t in case.things if t.word != case.polyseme]

    out = np.zeros((len(cases), len(seeds), 2), bool)
    key = lambda i: (cases[i].polyseme or "", *company(cases[i]))  # noqa: E731
    for _, group in groupby(sorted(range(len(cases)), key=key), key):
        rows = list(group)
        texts, word, others = [cases[i].prompt for i in rows], cases[rows[0]].polyseme or "", company(cases[rows[0]])
        polyseme = world.polysemes[word]
        item, repairs = Item(word, sense=polyseme.default_name if sense else None), []
        if rewrite and others:
            texts = [rename(t, [(item.find(t), item.sense)])[0] for t in texts]
        elif options is not None and others:
            repairs = [Patch(items=[item], others=others, **arguments)]
        with attach(pipe, *repairs):
            images = generate(pipe, texts, seeds, progress=progress, **call)
        for i, drawn in zip(rows, images, strict=True):
            beside = [t.glyph for t in cases[i].things if t.word != word]
            for s, r in enumerate(judge.read(drawn)):
                out[i, s] = r.count(polyseme.default) > 0, all(r.count(g) for g in beside)
    return out


def rows_of(method: str, cases: list[Case], before: np.ndarray, after: np.ndarray, subset: str) -> list[Row]:
    """Leak rate and what became of the leaks, for prompts [P] with outcomes [P, S, 2] before and after."""
    keep = np.array([subset in ("all", "before" if c.first else "after") for c in cases])
    if not keep.any():  # a --limit may leave a subset without prompts
        return []
    b, a = before[keep], after[keep]
    rows = [share(~a[..., 0], method, subset, "leak_rate")]
    leaked = ~b[..., 0]
    if leaked.any() and method != "none":
        per_prompt = [(a[p, :, 0] & leaked[p]).sum() / leaked[p].sum() for p in range(len(b)) if leaked[p].any()]
        rows.append(mean(per_prompt, method, subset, "leak_removed"))
    if method != "none":
        lost = paired_difference(a[..., 1], b[..., 1], method, subset, "harm_other")
        rows.append(lost)
    return rows


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a method that does not exist. Raises BadInput."""
    check_split(load_world(), split)
    if unknown := set(methods or ()) - set(METHODS):
        raise BadInput(f"bench words has no {sorted(unknown)}; choose from {list(METHODS)}")


def run(
    pipe: Any,
    out: Path,
    *,
    model: str = "emoji-sd",
    split: str = "heldout",
    seeds: Sequence[int] = range(4),
    limit: int | None = None,
    methods: Sequence[str] | None = None,
    call: dict[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Measure every method on trigger prompts and on neutral ones; finished methods are reused."""
    check(split, methods)
    world, judge, parts, call = load_world(), glyph_judge(), Parts(out), dict(call or {})
    chosen = ["none", *(m for m in methods or DEFAULT if m != "none")]
    sets = {kind: prompts(world, kind, split, limit or n) for kind, n in (("trigger", 100), ("neutral", 60))}
    weights = fingerprint(Anatomy.of(pipe).denoiser)
    results = Results("words", model, list(seeds), split, {"name": judge.name})
    total = sum(len(c) for c in sets.values()) * len(seeds)
    found: dict[str, np.ndarray] = {}
    for method in chosen:
        done = 0

        def tick(n: int, method: str = method) -> None:
            nonlocal done
            done += n
            if progress:
                progress(method, done, total)

        for kind, cases in sets.items():
            inputs = [model, weights, list(seeds), call, METHODS[method], [c.prompt for c in cases]]
            compute = lambda m=method, c=cases: outcomes(pipe, c, seeds, METHODS[m], call, tick).tolist()  # noqa: E731
            name = f"{method}-{kind}".replace("/", "_").replace(":", "_").replace("+", "_")
            found[kind] = np.array(parts.get(name, inputs, compute), bool)
            if method == "none":
                found[kind + "/none"] = found[kind]
        for subset in ("all", "before", "after"):
            results.rows += rows_of(method, sets["trigger"], found["trigger/none"], found["trigger"], subset)
        if method != "none":
            b, a = (found[k].min(-1) for k in ("neutral/none", "neutral"))
            results.rows.append(paired_difference(a, b, method, "neutral", "harm_neutral"))
    accuracy = float(judge_accuracy(judge, world, pipe.vae).mean())
    results.judge["accuracy"] = {"judge_reconstruction": round(accuracy, 4)}
    results.save(out)
    return results

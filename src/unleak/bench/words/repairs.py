"""The repair half of `unleak bench words`: which repairs stop leaks, what do they break, and what do they cost?

On trigger prompts ("a mouse and a laptop") the intended sense is the one that the word has alone. A leak is an
image without it. Every method draws the same prompts from the same noise; harm is what the other object, and
prompts that never leaked, lose. `Prune` is not among them: it drops tokens of items that have several, which
leaking words do not have; `unleak.bench.words.tokens` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import numpy as np
from torch import nn

from unleak.bench.rows import SHARE, Row, mean, paired_difference, share
from unleak.bench.run import Run
from unleak.core.anatomy import Anatomy
from unleak.drawing.generate import generate
from unleak.engine.session import attach
from unleak.errors import UnsupportedModel
from unleak.judges.glyphs import glyph_judge
from unleak.text.items import Item, parse_items
from unleak.text.phrases import phrase, rename
from unleak.words.presets import REPAIRS, RepairTask
from unleak.words.repair.repair import held_out_seeds, repair
from unleak.words.tokens.redundancy import tokens
from unleak.world import load as load_world
from unleak.world.prompts import Case

#: method -> what it does. `sense` names the item by its unambiguous name ("mouse=furry mouse"), `carriers` takes only
#: the representative tokens of that name; `with` is one of `REPAIRS`, by default "patch"; the rest are arguments.
#: After ":" the policy for EOS and pads or another setting, after "/" the only rows that change.
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
    "structure": {"with": "structure"},
    "structure+sense": {"with": "structure", "sense": True},
    "cutoff": {"with": "cutoff"},
    "tebopt": {"with": "tebopt"},
    "tebopt+sense": {"with": "tebopt", "sense": True},
    "boost": {"with": "boost"},
    "deleaker": {"with": "deleaker"},
    "auto": {"with": "auto"},
    "patch:bare": {"isolation": "bare"},
    "patch:keep": {"eos_pads": "keep", "isolation": "bare"},
    "patch:item": {"eos_pads": "item", "isolation": "bare"},
    "patch:masked-context": {"eos_pads": "masked-context", "isolation": "masked-context"},
    "patch:mean-of-items": {"eos_pads": "mean-of-items", "isolation": "bare"},
    "patch:round-robin": {"eos_pads": "round-robin", "isolation": "bare"},
    "patch:difference": {"eos_pads": "difference", "isolation": "masked-context"},
    "patch:attn-mask": {"eos_pads": "attn-mask", "isolation": "attn-mask"},
    "patch:carriers": {"sense": True, "carriers": True},
    "cutoff:strong": {"with": "cutoff", "weight": 1.0, "strong": True},
}
#: what runs without --methods; the other policies are there to be compared
DEFAULT = tuple(m for m in METHODS if not m.startswith(("patch:", "cutoff:")))
#: kind of prompt -> how many
KINDS = {"trigger": 100, "neutral": 60}
COSTED = 4  #: trigger prompts on which rows are counted


def repaired_by(name: str, items: Sequence[Item], others: Sequence[str | Item], parameters: Mapping[str, Any]) -> Any:
    """The repair of these items beside all others, by its name in `REPAIRS`."""
    task = RepairTask(tuple(items), parse_items(others) if others else (), (None,) * len(items))
    return REPAIRS[name].build(task, parameters)


def code(options: Mapping[str, Any] | None) -> list[Any]:
    """What carries a method out."""
    if not options:
        return [] if options is None else [REPAIRS["patch"].method]
    name = options.get("with", "patch")
    return [repair if name == "auto" else REPAIRS[name].method, *([tokens] if "carriers" in options else [])]


def outcomes(
    pipe: Any,
    cases: Sequence[Case],
    seeds: Sequence[int],
    options: Mapping[str, Any] | None,
    call: dict[str, Any],
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[P, S, 2] of bool: the polyseme's own sense is there; every other item is there.

    A lone word has no company to leak from and is drawn as it is.
    """
    world, judge = load_world(), glyph_judge()
    out = np.zeros((len(cases), len(seeds), 2), bool)
    key = lambda i: (cases[i].polyseme or "", *_company(cases[i]))  # noqa: E731
    for (word, *others), group in groupby(sorted(range(len(cases)), key=key), key):
        rows, default = list(group), world.polysemes[word].default
        texts = [cases[i].prompt for i in rows]
        images = _images(pipe, texts, word, others, seeds, options if others else None, call, progress)
        for i, drawn in zip(rows, images, strict=True):
            beside = [t.glyph for t in cases[i].things if t.word != word]
            for s, r in enumerate(judge.read(drawn)):
                out[i, s] = r.count(default) > 0, all(r.count(g) for g in beside)
    return out


def _company(case: Case) -> list[str]:
    return [t.phrase for t in case.things if t.word != case.polyseme]


def _images(
    pipe: Any,
    texts: list[str],
    word: str,
    others: list[str],
    seeds: Sequence[int],
    options: Mapping[str, Any] | None,
    call: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> Any:
    """Images [P, S, H, W, 3] of prompts that name the same things, by one method (None: as they are)."""
    if options is None:
        return generate(pipe, texts, seeds, progress=progress, **call)
    arguments = dict(options)
    way, sense, rewrite = (arguments.pop(name, None) for name in ("with", "sense", "rewrite"))
    if way == "auto":
        return [_automatic(pipe, text, [word, *others], seeds, call, progress) for text in texts]
    item = Item(word, sense=load_world().polysemes[word].default_name if sense else None)
    if rewrite:
        texts = [rename(t, [(item.find(t), item.sense)])[0] for t in texts]
    if arguments.pop("carriers", False):
        arguments |= by_carriers(pipe, item, seeds, call)
    repairs = [] if rewrite else [repaired_by(way or "patch", [item], others, arguments)]
    with attach(pipe, *repairs):
        return generate(pipe, texts, seeds, progress=progress, **call)


def by_carriers(pipe: Any, item: Item, seeds: Sequence[int], call: dict[str, Any]) -> dict[str, Any]:
    """`Patch` by the tokens that carry the sense alone, found on other seeds; as ever where no single one does."""
    bare = phrase(f"a {item.text}", (2, 2 + len(item.text)), item.sense).text
    study = tokens(pipe, bare, [item.sense or item.text], judge=glyph_judge(), seeds=held_out_seeds(seeds), call=call)
    found = study.carriers()
    return {"unequal": "representative", "carriers": found} if found.pieces else {}


def _automatic(
    pipe: Any, text: str, items: list[str], seeds: Sequence[int], call: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> np.ndarray:  # fmt: skip
    """What `unleak.repair` returns; its trials on other seeds count as cost, not as progress."""
    images = repair(pipe, text, items, seeds=seeds, judge=glyph_judge(), call=call).after
    if progress:
        progress(len(seeds))
    return images


@contextmanager
def counting(pipe: Any) -> Iterator[dict[str, int]]:
    """Counts batch rows through all text encoders and through the denoiser, whoever asks for them."""
    anatomy, counts = Anatomy.of(pipe), {"encoder_rows": 0, "denoiser_rows": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            counts[name] += len(output[0])

        return hook

    handles = [e.module.register_forward_hook(count("encoder_rows")) for e in anatomy.encoders]
    handles.append(anatomy.denoiser.register_forward_hook(count("denoiser_rows")))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def costs(run: Run, method: str, cases: Sequence[Case]) -> list[Row]:
    """`encoder_rows` and `denoiser_rows` of one image, each prompt and seed on its own.

    Raises UnsupportedModel where the method cannot act on this model.
    """

    def measured() -> list[dict[str, float]]:
        found = []
        for case in cases[:COSTED]:
            with counting(run.pipe) as counts:
                outcomes(run.pipe, [case], run.seeds, METHODS[method], run.call)
            found.append({name: n / len(run.seeds) for name, n in counts.items()})
        return found

    each = run.part(
        f"{method}-cost", [METHODS[method], [c.prompt for c in cases[:COSTED]]], measured, code(METHODS[method])
    )
    return [mean([one[name] for one in each], method, "trigger", name) for name in ("encoder_rows", "denoiser_rows")]


def rows_of(method: str, cases: Sequence[Case], before: np.ndarray, after: np.ndarray, subset: str) -> list[Row]:
    """Leak rate and what became of the leaks, for prompts [P] with outcomes [P, S, 2] before and after."""
    keep = np.array([subset in ("all", "before" if c.first else "after") for c in cases])
    if not keep.any():  # a --limit may leave a subset without prompts
        return []
    b, a = before[keep], after[keep]
    rows = [share(~a[..., 0], method, subset, "leak_rate")]
    leaked = ~b[..., 0]
    if leaked.any() and method != "none":
        per_prompt = [(a[p, :, 0] & leaked[p]).sum() / leaked[p].sum() for p in range(len(b)) if leaked[p].any()]
        rows.append(mean(per_prompt, method, subset, "leak_removed", SHARE))
    if method != "none":
        lost = paired_difference(a[..., 1], b[..., 1], method, subset, "harm_other", SHARE)
        rows.append(lost)
    return rows


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """Every method on trigger prompts and on neutral ones, always beside "none"; finished methods are reused."""
    sets = {kind: run.cases(kind, n) for kind, n in KINDS.items()}
    total = sum(map(len, sets.values())) * len(run.seeds)
    before: dict[str, np.ndarray] = {}
    made: list[Row] = []
    for method in ["none", *(m for m in methods if m != "none")]:
        try:
            cost = costs(run, method, sets["trigger"])
        except UnsupportedModel as e:
            run.notes.append(f"{method}: {e}")
            continue
        tick, found = run.ticking(method, total), dict[str, np.ndarray]()
        for kind, cases in sets.items():
            inputs = [METHODS[method], [c.prompt for c in cases]]
            compute = lambda m=method, c=cases, t=tick: outcomes(  # noqa: E731
                run.pipe, c, run.seeds, METHODS[m], run.call, t
            ).tolist()
            part = run.part(f"{method}-{kind}", inputs, compute, code(METHODS[method]))
            found[kind] = np.array(part, bool)
        before = before or found
        for subset in ("all", "before", "after"):
            made += rows_of(method, sets["trigger"], before["trigger"], found["trigger"], subset)
        if method != "none":
            b, a = (x["neutral"].min(-1) for x in (before, found))
            made.append(paired_difference(a, b, method, "neutral", "harm_neutral", SHARE))
        made += cost
    return made

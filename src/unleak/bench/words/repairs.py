"""The repair half of `unleak bench words`: which repairs stop leaks, what do they break, and what do they cost?

On trigger prompts ("a mouse and a laptop") the intended sense is the one that the word has alone. A leak is an
image without it. Every method draws the same prompts from the same noise; harm is what the other object, and
prompts that never leaked, lose. `Prune` is not among them: it drops tokens of items that have several, which
leaking words do not have; `unleak.bench.words.tokens` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
from unleak.words.presets import REPAIRS, Repair, RepairTask
from unleak.words.repair.repair import held_out_seeds, repair
from unleak.words.tokens.redundancy import tokens
from unleak.world import load as load_world
from unleak.world.prompts import Case

AUTO = "auto"


@dataclass(frozen=True)
class Variant:
    """How a row of the table repairs.

    Attributes:
        preset: a name in `REPAIRS`; `AUTO`: what `unleak.repair` chooses; None: nothing is repaired.
        sense: the broken item is named by its unambiguous name ("mouse=furry mouse").
        rewrite: that name is written into the prompt.
        carriers: only the tokens that carry the name are taken.
        parameters: in which the preset is changed.
    """

    preset: str | None = None
    sense: bool = False
    rewrite: bool = False
    carriers: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code(self) -> list[Any]:
        """What carries it out."""
        method = [repair] if self.preset == AUTO else [] if self.preset is None else [REPAIRS[self.preset].method]
        return [*method, *([tokens] if self.carriers else [])]


def _patch(sense: bool = False, **parameters: Any) -> Variant:
    return Variant("patch", sense, parameters=parameters)


def acts(preset: Repair) -> bool:
    """Whether a repair acts on items of which no token is known to be redundant."""
    task = RepairTask((Item("mouse"),), (Item("laptop"),), (None,))
    return preset.arguments(task) is not None


PRESETS: dict[str, Variant] = {name: Variant(name) for name, preset in REPAIRS.items() if acts(preset)}
NAMED: dict[str, Variant] = {f"{name}+sense": Variant(name, sense=True) for name in PRESETS}
#: settings of the patch: after "/" the only rows that change, after ":" the policy for EOS and pads or another setting
VARIANTS: dict[str, Variant] = {
    **{f"patch+sense/{'+'.join(rows)}": _patch(True, rows=rows) for rows in (
        ("item",), ("context",), ("eos",), ("pads",), ("eos", "pads"), ("item", "eos", "pads"))},
    "patch+sense:renamed": _patch(True, eos_pads="renamed"),
    "patch:bare": _patch(isolation="bare"),
    "patch:keep": _patch(eos_pads="keep", isolation="bare"),
    "patch:item": _patch(eos_pads="item", isolation="bare"),
    "patch:masked-context": _patch(eos_pads="masked-context", isolation="masked-context"),
    "patch:mean-of-items": _patch(eos_pads="mean-of-items", isolation="bare"),
    "patch:round-robin": _patch(eos_pads="round-robin", isolation="bare"),
    "patch:difference": _patch(eos_pads="difference", isolation="masked-context"),
    "patch:attn-mask": _patch(eos_pads="attn-mask", isolation="attn-mask"),
    "patch:carriers": Variant("patch", sense=True, carriers=True),
    "cutoff:strong": Variant("cutoff", parameters={"weight": 1.0, "strong": True}),
}  # fmt: skip
#: every repair with the word as it stands and with its unambiguous name, and what they are compared with
METHODS: dict[str, Variant] = {
    "none": Variant(),
    "rewrite": Variant(sense=True, rewrite=True),
    **PRESETS,
    **NAMED,
    AUTO: Variant(AUTO),
    **VARIANTS,
}
#: what runs without --methods; the other policies are there to be compared
DEFAULT = ("none", "rewrite", *PRESETS, "patch+sense", "structure+sense", "tebopt+sense", AUTO,
           *(name for name in VARIANTS if name.startswith("patch+sense")))  # fmt: skip
#: kind of prompt -> how many
KINDS = {"trigger": 100, "neutral": 60}
COSTED = 4  #: trigger prompts on which rows are counted


def repaired_by(name: str, items: Sequence[Item], others: Sequence[str | Item], parameters: Mapping[str, Any]) -> Any:
    """A preset of `REPAIRS` for these items beside all others."""
    task = RepairTask(tuple(items), parse_items(others) if others else (), (None,) * len(items))
    return REPAIRS[name].build(task, parameters)


def outcomes(
    pipe: Any,
    cases: Sequence[Case],
    seeds: Sequence[int],
    variant: Variant,
    call: dict[str, Any],
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """[P, S, 2] of bool: the polyseme's own sense is there; every other item is there.

    A lone word has no context to leak from and is drawn as it is.
    """
    world, judge = load_world(), glyph_judge()
    out = np.zeros((len(cases), len(seeds), 2), bool)
    key = lambda i: (cases[i].polyseme or "", *_context(cases[i]))  # noqa: E731
    for (word, *others), group in groupby(sorted(range(len(cases)), key=key), key):
        rows, default = list(group), world.polysemes[word].default
        texts = [cases[i].prompt for i in rows]
        images = _images(pipe, texts, word, others, seeds, variant if others else Variant(), call, progress)
        for i, drawn in zip(rows, images, strict=True):
            beside = [t.glyph for t in cases[i].things if t.word != word]
            for s, r in enumerate(judge.read(drawn)):
                out[i, s] = r.count(default) > 0, all(r.count(g) for g in beside)
    return out


def _context(case: Case) -> list[str]:
    return [t.phrase for t in case.things if t.word != case.polyseme]


def _images(
    pipe: Any,
    texts: list[str],
    word: str,
    others: list[str],
    seeds: Sequence[int],
    variant: Variant,
    call: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> Any:
    """Images [P, S, H, W, 3] of prompts that name the same things, by one method."""
    if variant.preset == AUTO:
        return [_automatic(pipe, text, [word, *others], seeds, call, progress) for text in texts]
    item = Item(word, sense=load_world().polysemes[word].default_name if variant.sense else None)
    if variant.rewrite:
        texts = [rename(t, [(item.find(t), item.sense)])[0] for t in texts]
    parameters = dict(variant.parameters)
    if variant.carriers:
        parameters |= by_carriers(pipe, item, seeds, call)
    repairs = [] if variant.preset is None else [repaired_by(variant.preset, [item], others, parameters)]
    with attach(pipe, *repairs):
        return generate(pipe, texts, seeds, progress=progress, **call)


def by_carriers(pipe: Any, item: Item, seeds: Sequence[int], call: dict[str, Any]) -> dict[str, Any]:
    """`Patch` by the tokens that carry the sense alone, found on other seeds; as ever where no single one does."""
    bare = phrase(f"a {item.text}", (2, 2 + len(item.text)), item.sense).text
    study = tokens(pipe, bare, [item.sense or item.text], judge=glyph_judge(), seeds=held_out_seeds(seeds), call=call)
    carriers = study.carriers()
    return {"unequal": "representative", "carriers": carriers} if carriers.pieces else {}


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
        counted = []
        for case in cases[:COSTED]:
            with counting(run.pipe) as counts:
                outcomes(run.pipe, [case], run.seeds, METHODS[method], run.call)
            counted.append({name: n / len(run.seeds) for name, n in counts.items()})
        return counted

    each = run.part(
        f"{method}-cost", [asdict(METHODS[method]), [c.prompt for c in cases[:COSTED]]], measured, METHODS[method].code
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
    figures: list[Row] = []
    for method in ["none", *(m for m in methods if m != "none")]:
        try:
            cost = costs(run, method, sets["trigger"])
        except UnsupportedModel as e:
            run.notes.append(f"{method}: {e}")
            continue
        tick, after = run.ticking(method, total), dict[str, np.ndarray]()
        for kind, cases in sets.items():
            inputs = [asdict(METHODS[method]), [c.prompt for c in cases]]
            compute = lambda m=method, c=cases, t=tick: outcomes(  # noqa: E731
                run.pipe, c, run.seeds, METHODS[m], run.call, t
            ).tolist()
            part = run.part(f"{method}-{kind}", inputs, compute, METHODS[method].code)
            after[kind] = np.array(part, bool)
        before = before or after
        for subset in ("all", "before", "after"):
            figures += rows_of(method, sets["trigger"], before["trigger"], after["trigger"], subset)
        if method != "none":
            b, a = (x["neutral"].min(-1) for x in (before, after))
            figures.append(paired_difference(a, b, method, "neutral", "harm_neutral", SHARE))
        figures += cost
    return figures

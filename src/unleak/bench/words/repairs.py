"""The repair half of `unleak bench words`: which repairs stop leaks, what do they break, and what do they cost?

On trigger prompts ("a mouse and a laptop") the intended sense is the one that the word has alone. A leak is an
image without it. There is one prompt for every held-out context (word, trigger, connective, order); prompts of one
pair of a word and its trigger resemble each other, and the interval is one over pairs. Every method draws the same
prompts from the same noise. Harm is counted twice. Leniently: an object that was there is missing. Strictly: the
picture does not show exactly what was asked for, in number and sense. `Prune` is not among the methods: it drops tokens
of items that have several, which leaking words do not have; `unleak.bench.words.tokens` measures it.
"""

from __future__ import annotations

from collections import Counter
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
from unleak.judges.glyphs import GlyphJudge, glyph_judge
from unleak.text.items import Item, parse_items
from unleak.text.phrases import phrase, rename
from unleak.words.presets import REPAIRS, Repair, RepairTask
from unleak.words.repair.automatic import held_out_seeds
from unleak.words.repair.repair import repair
from unleak.words.tokens.redundancy import tokens
from unleak.world.grammar import CONNECTIVES
from unleak.world.prompts import Case, contexts, prompts
from unleak.world.vocabulary import Polyseme

AUTO, REROLL = "auto", "reroll"


@dataclass(frozen=True)
class Variant:
    """How a row of the table repairs.

    Attributes:
        preset: a name in `REPAIRS`; `AUTO`: what `unleak.repair` chooses; `REROLL`: nothing is repaired, but
            drawn again from other noise as often as `AUTO` draws, and the first picture in which the judge sees
            every item is kept; None: nothing is repaired.
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
        if self.preset in (AUTO, REROLL):  # how often is drawn again follows from what `repair` costs
            return [repair]
        method = [] if self.preset is None else [REPAIRS[self.preset].method]
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
    REROLL: Variant(REROLL),
    **VARIANTS,
}
#: what runs without --methods; the other policies are there to be compared
DEFAULT = ("none", "rewrite", *PRESETS, "cutoff:strong", "patch+sense", "structure+sense", "tebopt+sense", AUTO, REROLL,
           *(name for name in VARIANTS if name.startswith("patch+sense")))  # fmt: skip
NEUTRAL = 60  #: prompts without a trigger
AGAIN = 100_000  #: seeds of drawings that `REROLL` makes again
COSTED = 4  #: trigger prompts on which rows are counted
#: what is said of one image
OUTCOMES = ("intended", "others", "strict", "excess", "other")


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
    draws: int = 1,
    judge: GlyphJudge | None = None,
) -> np.ndarray:
    """[P, S, OUTCOMES] of bool: the polyseme's own sense is there; every other item is there; exactly what was asked
    for is there and nothing else; something is there that was not asked for, but for the sense that leaks alone; the
    other sense is there.

    Args:
        draws: how often `REROLL` draws each image.
        judge: of the world of these cases; by default that of the first world.
    """
    judge = judge or glyph_judge()
    out = np.zeros((len(cases), len(seeds), len(OUTCOMES)), bool)
    key = lambda i: (cases[i].polyseme or "", *_context(cases[i]))  # noqa: E731
    for (word, *others), group in groupby(sorted(range(len(cases)), key=key), key):
        rows, polyseme = list(group), judge.world.polysemes[word]
        texts = [cases[i].prompt for i in rows]
        if variant.preset == REROLL:
            images = _rerolled(pipe, texts, [word, *others], seeds, draws, call, progress, judge)
        else:
            images = _images(pipe, texts, word, others, seeds, variant, call, progress, judge)
        for i, drawn in zip(rows, images, strict=True):
            beside = [t.glyph for t in cases[i].things if t.word != word]
            for s, reading in enumerate(judge.read(drawn)):
                out[i, s] = outcome([f.glyph for f in reading.found], polyseme, beside)
    return out


def outcome(glyphs: Sequence[str], polyseme: Polyseme, beside: Sequence[str]) -> tuple[bool, ...]:
    """`OUTCOMES` of the glyphs that an image shows, where a polyseme in its default sense and others were asked for.

    >>> mouse = Polyseme("mouse", "mouse", "furry mouse", "computer mouse", "computer mouse", ("laptop",))
    >>> outcome(["mouse", "laptop", "computer mouse"], mouse, ["laptop"])
    (True, True, False, True, True)
    >>> outcome(["computer mouse", "laptop"], mouse, ["laptop"])
    (False, True, False, False, True)
    """
    asked, seen = Counter([polyseme.default, *beside]), Counter(glyphs)
    leaked = asked + Counter([polyseme.other]) - Counter([polyseme.default])  # the other sense instead
    return (
        seen[polyseme.default] > 0,
        all(seen[glyph] for glyph in beside),
        seen == asked,
        bool(seen - asked) and bool(seen - leaked),
        seen[polyseme.other] > 0,
    )


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
    judge: GlyphJudge,
) -> Any:
    """Images [P, S, H, W, 3] of prompts that name the same things, by one method."""
    if variant.preset == AUTO:
        return [_automatic(pipe, text, [word, *others], seeds, call, progress, judge) for text in texts]
    item = Item(word, sense=judge.world.polysemes[word].default_name if variant.sense else None)
    if variant.rewrite:
        texts = [rename(t, [(item.find(t), item.sense)])[0] for t in texts]
    parameters = dict(variant.parameters)
    if variant.carriers:
        parameters |= by_carriers(pipe, item, seeds, call, judge)
    repairs = [] if variant.preset is None else [repaired_by(variant.preset, [item], others, parameters)]
    with attach(pipe, *repairs):
        return generate(pipe, texts, seeds, progress=progress, **call)


def _rerolled(
    pipe: Any, texts: list[str], items: list[str], seeds: Sequence[int], draws: int, call: dict[str, Any],
    progress: Callable[[int], None] | None, judge: GlyphJudge,
) -> list[np.ndarray]:  # fmt: skip
    """Of each image the first of so many drawings in which the judge sees every item; else the first of all."""
    named, kept = parse_items(items), []
    for text in texts:
        each = []
        for seed in seeds:
            images = generate(pipe, text, [seed, *(AGAIN * (1 + seed) + k for k in range(1, draws))], **call)[0]
            each.append(images[int(judge.present(images, named).all(1).argmax())])
            if progress:
                progress(1)
        kept.append(np.stack(each))
    return kept


def by_carriers(pipe: Any, item: Item, seeds: Sequence[int], call: dict[str, Any], judge: GlyphJudge) -> dict[str, Any]:
    """`Patch` by the tokens that carry the sense alone, found on other seeds; as ever where no single one does."""
    bare = phrase(f"a {item.text}", (2, 2 + len(item.text)), item.sense).text
    study = tokens(pipe, bare, [item.sense or item.text], judge=judge, seeds=held_out_seeds(seeds), call=call)
    carriers = study.carriers()
    return {"unequal": "representative", "carriers": carriers} if carriers.pieces else {}


def _automatic(
    pipe: Any, text: str, items: list[str], seeds: Sequence[int], call: dict[str, Any],
    progress: Callable[[int], None] | None, judge: GlyphJudge,
) -> np.ndarray:  # fmt: skip
    """What `unleak.repair` returns; its trials on other seeds count as cost, not as progress."""
    images = repair(pipe, text, items, seeds=seeds, judge=judge, call=call).after
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


def costs(run: Run, method: str, cases: Sequence[Case], draws: int = 1) -> list[Row]:
    """`encoder_rows` and `denoiser_rows` of one image, each prompt and seed on its own.

    Raises UnsupportedModel where the method cannot act on this model.
    """

    def measured() -> list[dict[str, float]]:
        counted = []
        for case in cases[:COSTED]:
            with counting(run.pipe) as counts:
                outcomes(run.pipe, [case], run.seeds, METHODS[method], run.call, draws=draws, judge=run.judge)
            counted.append({name: n / len(run.seeds) for name, n in counts.items()})
        return counted

    each = run.part(
        f"{method}-cost",
        [asdict(METHODS[method]), draws, [c.prompt for c in cases[:COSTED]]],
        measured,
        METHODS[method].code,
    )
    return [mean([one[name] for one in each], method, "trigger", name) for name in ("encoder_rows", "denoiser_rows")]


def draws(run: Run, cases: Sequence[Case]) -> int:
    """How often `REROLL` draws an image to cost what `unleak.repair` costs on these prompts, in denoiser rows."""
    rows = {name: costs(run, name, cases)[-1].value for name in ("none", AUTO)}
    return max(1, round(rows[AUTO] / rows["none"]))


def unit(case: Case) -> tuple[str, ...]:
    """What is drawn independently: the polyseme with what stands beside it."""
    return (case.polyseme or "", *sorted(_context(case)))


def rows_of(method: str, cases: Sequence[Case], before: np.ndarray, after: np.ndarray, subset: str) -> list[Row]:
    """What became of the leaks and of the rest, for trigger prompts [P] with outcomes [P, S, OUTCOMES].

    `leak_rate`: of the images those without the intended sense. `right_strict`: those that show exactly what was asked
    for. `leak_removed`: of the images that leaked, those that do no more. `harm_other`: how many more lack another
    object than before. `harm_strict`: how many more lack another object or show one too many: a foreign one, one twice,
    or the second sense beside the right one.
    """
    keep = [i for i, c in enumerate(cases) if subset in ("all", "before" if c.first else "after")]
    if not keep:  # a --limit may leave a subset without prompts
        return []
    units = [unit(cases[i]) for i in keep]
    (b, *_), (a, others, strict, *_) = (np.moveaxis(x[keep], -1, 0) for x in (before, after))
    rows = [
        share(~a, method, subset, "leak_rate", units),
        share(strict, method, subset, "right_strict", units),
    ]
    if method == "none":
        return rows
    leaked = [~each for each in b]
    if any(each.any() for each in leaked):
        mended = [now[was] for now, was in zip(a, leaked, strict=True)]
        rows.append(share(mended, method, subset, "leak_removed", units))
    before_others, harmed = before[keep][..., 1], _harmed(before[keep])
    return [
        *rows,
        paired_difference(others, before_others, method, subset, "harm_other", SHARE, units),
        paired_difference(harmed, _harmed(after[keep]), method, subset, "harm_strict", SHARE, units),
    ]


def _harmed(outcomes: np.ndarray) -> np.ndarray:
    return np.logical_or(~outcomes[..., 1], outcomes[..., 3])


def neutral_rows(method: str, cases: Sequence[Case], before: np.ndarray, after: np.ndarray) -> list[Row]:
    """What prompts without a trigger lose: `harm_neutral`, an item; `harm_neutral_strict`, exactly the asked items."""
    units = [unit(case) for case in cases]
    return [
        paired_difference(say(after), say(before), method, "neutral", name, SHARE, units)
        for name, say in (("harm_neutral", _there), ("harm_neutral_strict", lambda x: x[..., 2]))
    ]


def _there(outcomes: np.ndarray) -> np.ndarray:
    return np.logical_and(outcomes[..., 0], outcomes[..., 1])


def trigger_prompts(run: Run) -> list[Case]:
    """One for every held-out context, or for the first of them; a note says what was drawn."""
    cases = contexts(run.world, run.split, run.limit)
    every, pairs = run.world.contexts[run.split], {unit(case) for case in cases}
    held_out: Counter[tuple[str, ...]] = Counter(
        (word, trigger) for split in run.world.contexts.values() for word, trigger, *_ in split
    )
    seen = sum(held_out[pair] < 2 * len(CONNECTIVES) for pair in pairs)
    run.notes.append(
        f"repairs: {len(cases)} of the {len(every)} contexts (word, trigger, connective, order) of this split, which "
        f"training did not show; their units are {len(pairs)} pairs of a word and a trigger, of which training showed "
        f"{seen} in other contexts"
    )
    return cases


def neutral_prompts(run: Run) -> list[Case]:
    """Prompts of two objects in which nothing leaks; on a lone object no method acts."""
    cases = [case for case in prompts(run.world, "neutral", run.split, 2 * NEUTRAL) if len(case.things) > 1]
    return cases[: min(run.limit or NEUTRAL, NEUTRAL)]


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """Every method on trigger prompts and on neutral ones, always beside "none"; finished methods are reused."""
    sets = {"trigger": trigger_prompts(run), "neutral": neutral_prompts(run)}
    total = sum(map(len, sets.values())) * len(run.seeds)
    before: dict[str, np.ndarray] = {}
    figures: list[Row] = []
    for method in ["none", *(m for m in methods if m != "none")]:
        try:
            again = draws(run, sets["trigger"]) if method == REROLL else 1
            cost = costs(run, method, sets["trigger"], again)
        except UnsupportedModel as e:
            run.notes.append(f"{method}: {e}")
            continue
        if method == REROLL:
            run.notes.append(
                f"{REROLL}: each image is drawn {again} times, about what `unleak.repair` costs; the judge that "
                "chooses among them is the one that counts, as it is for repair"
            )
        tick, after = run.ticking(method, total), dict[str, np.ndarray]()
        for kind, cases in sets.items():
            inputs = [asdict(METHODS[method]), again, [c.prompt for c in cases]]
            compute = lambda m=method, c=cases, t=tick, k=again: outcomes(  # noqa: E731
                run.pipe, c, run.seeds, METHODS[m], run.call, t, k, run.judge
            ).tolist()
            part = run.part(f"{method}-{kind}", inputs, compute, METHODS[method].code)
            after[kind] = np.array(part, bool)
        before = before or after
        for subset in ("all", "before", "after"):
            figures += rows_of(method, sets["trigger"], before["trigger"], after["trigger"], subset)
        if method != "none":
            figures += neutral_rows(method, sets["neutral"], before["neutral"], after["neutral"])
        figures += cost
    return figures

"""Which items of a prompt mean something else because of the other items? No image is drawn.

Per item and encoder the shift that each other item causes (`unleak.words.lint.shift`) is measured against a neutral
context (`unleak.words.lint.neutral`); the largest z-score becomes a risk (`unleak.words.lint.calibration`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, tee
from typing import Any, NamedTuple

from unleak.errors import BadInput
from unleak.saved import Count, Share
from unleak.text.encode import weights_digest
from unleak.text.encoder_calls import encoder_calls
from unleak.text.items import Item
from unleak.text.phrases import phrase, rename
from unleak.words.lint.calibration import RiskCalibration, fit, shipped
from unleak.words.lint.neutral import NeutralBank, ReferenceStatistics
from unleak.words.lint.prompt_file import Line, Watched, line
from unleak.words.lint.shift import (
    REST,
    Bare,
    Cut,
    Sentence,
    SentenceEncoder,
    SentenceRows,
    Shift,
    Without,
    sense_position,
    shifts,
    towards,
    variants,
)

CHUNK = 64  #: prompts encoded together


@dataclass(frozen=True)
class Channel:
    """One place where an item can shift: its own rows, or the rows after the text. See `unleak.words.lint.shift`."""

    size: float
    loss: float
    z: float


@dataclass(frozen=True)
class EncoderShift:
    """One item in one encoder, beside the other item that shifts it most.

    Attributes:
        by: that other item; None for the rest of a prompt with one item.
        channels: ``own`` and, in a causal encoder, ``after``.
        towards: other item -> cosine of the shift that it causes in the item's own rows with the way to its row.
        senses: known other sense -> channel -> position between the intended sense (0) and that one (1).
    """

    by: str | None
    channels: dict[str, Channel]
    towards: dict[str, float]
    senses: dict[str, dict[str, float]]

    @property
    def z(self) -> float:
        return max(channel.z for channel in self.channels.values())


@dataclass(frozen=True)
class ItemLint:
    """One item: its characters in the prompt, its risk in 0..1, the largest z-score and where it comes from."""

    text: str
    span: tuple[Count, Count]
    risk: Share
    z: float
    encoder: str
    by: str | None
    encoders: dict[str, EncoderShift]


@dataclass(frozen=True)
class PromptLint:
    """One prompt of a file, or why it could not be read (`error`); `line` is its number."""

    line: int
    prompt: str = ""
    items: list[ItemLint] = field(default_factory=list)
    error: str | None = None

    @property
    def risk(self) -> float:
        """The largest of its items'."""
        return max((item.risk for item in self.items), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        if self.error is not None:
            return {"line": self.line, "prompt": self.prompt, "error": self.error}
        return {"line": self.line, "prompt": self.prompt, "risk": self.risk, "items": [asdict(i) for i in self.items]}


class Work(NamedTuple):
    """One line and, per encoder, its sentences (variants by what is replaced, senses by item and rank), cut."""

    line: Line
    cuts: dict[str, dict[Any, Cut]]


class Linter:
    """The text encoders of one pipeline, ready to lint. `calibrated` says whether the risk is theirs.

    Args:
        pipe: a diffusers pipeline; its denoiser may be missing.
        calibration: default: the shipped one of these encoders, or else the embedded model's, uncalibrated.
        call: how the pipeline will be called; only what concerns its text matters (``max_sequence_length=32``).

    Raises:
        UnsupportedModel: the pipeline's encoders cannot be read.
        BadInput: the calibration is another encoder's, or one of copies.
    """

    def __init__(self, pipe: Any, calibration: RiskCalibration | None = None, **call: Any) -> None:
        calls = encoder_calls(pipe, **call)
        self.encoders = {one.call.name: SentenceEncoder(one) for one in calls}
        self.banks = {name: NeutralBank(encoder) for name, encoder in self.encoders.items()}
        self.digests = {one.call.name: weights_digest(one.call.module) for one in calls}
        if not isinstance(calibration, RiskCalibration | None):
            raise BadInput(
                f"calibration={type(calibration).__name__}: unleak lint takes a RiskCalibration, from --fit or "
                "RiskCalibration.load(file); an unleak.Calibration is of copies and belongs to a gate"
            )
        if calibration is not None and not calibration.fits(self.digests):
            raise BadInput("this calibration was fitted on other text encoders: fit one on these with --fit")
        self.calibration, self.calibrated = shipped(self.digests) if calibration is None else (calibration, True)

    def __call__(self, lines: Iterable[Line]) -> Iterator[PromptLint]:
        """One result per line, in order. Equal lines in equal chunks give equal results to the last bit."""
        iterator = iter(lines)
        while chunk := list(islice(iterator, CHUNK)):
            yield from self.chunk(chunk)

    def chunk(self, lines: Sequence[Line]) -> list[PromptLint]:
        """`CHUNK` lines at most, encoded together."""
        prepared = [self._prepare(each) for each in lines]
        work = [one for one in prepared if isinstance(one, Work)]
        rows = {name: self._read(name, work) for name in self.encoders}
        done = iter([self._judge(one, {n: r[k] for n, r in rows.items()}) for k, one in enumerate(work)])
        return [next(done) if isinstance(one, Work) else one for one in prepared]

    def _prepare(self, given: Line) -> Work | PromptLint:
        if given.error is not None:
            return PromptLint(given.number, given.prompt, error=given.error)
        sentences: dict[Any, Sentence] = dict(variants(given.prompt, given.spans))
        sentences.update(_by_sense(given))
        try:
            cuts = {n: {k: e.cut(s) for k, s in sentences.items()} for n, e in self.encoders.items()}
            for a in range(len(given.items)):
                self._measure(given, a)
        except BadInput as e:
            return PromptLint(given.number, given.prompt, error=str(e))
        return Work(given, cuts)

    def _measure(self, given: Line, a: int) -> None:
        """Measure the item's banks now, where an error is still this prompt's alone."""
        for name in self.banks:
            for b in range(len(given.items)):
                if b != a or len(given.items) == 1:
                    self._references(given, a, REST if b == a else b, name)
                if b != a and len(given.items) > 2:
                    self._pair(given, a, b, name)

    def _read(self, name: str, work: Sequence[Work]) -> list[dict[Any, SentenceRows]]:
        """The rows of every line's sentences in one encoder; a sentence that occurs twice is encoded once."""
        every = list({_key(cut): cut for one in work for cut in one.cuts[name].values()}.values())
        known = dict(zip(map(_key, every), self.encoders[name].read(every), strict=True))
        return [{k: known[_key(cut)] for k, cut in one.cuts[name].items()} for one in work]

    def _judge(self, one: Work, rows: Mapping[str, dict[Any, SentenceRows]]) -> PromptLint:
        items = []
        for a, item in enumerate(one.line.items):
            of_encoders = {name: self._encoder_shift(one.line, a, name, rows[name]) for name in rows}
            encoder, worst = max(of_encoders.items(), key=lambda pair: pair[1].z)
            risk = round(self.calibration.risk(worst.z), 4)
            items.append(ItemLint(item.text, one.line.spans[a], risk, worst.z, encoder, worst.by, of_encoders))
        return PromptLint(one.line.number, one.line.prompt, items)

    def _encoder_shift(self, given: Line, a: int, name: str, rows: dict[Any, SentenceRows]) -> EncoderShift:
        others = [b for b in range(len(given.items)) if b != a]
        by = {b: self._channels(given, a, b, name, rows) for b in others or [REST]}
        worst = max(by, key=lambda b: max(channel.z for channel in by[b].values()))
        directions = {_label(given.items[b]): _round(towards(rows, a, b)) for b in others}
        senses = {}
        for k, other in enumerate(_names(given.items[a])[1:], 1):
            at = sense_position(rows[Without()], rows["sense", a, 0], rows["sense", a, k], a)
            senses[other] = {channel: _round(value) for channel, value in at.items()}
        return EncoderShift(None if worst == REST else _label(given.items[worst]), by[worst], directions, senses)

    def _channels(self, given: Line, a: int, b: int, name: str, rows: dict[Any, SentenceRows]) -> dict[str, Channel]:
        """What item b does to item a against the reference: in the prompt, and with others also without them."""
        references = self._references(given, a, b, name)
        contexts = [shifts(rows, a, b), *([self._pair(given, a, b, name)] if len(given.items) > 2 else [])]
        means = {channel: Shift.mean([each[channel] for each in contexts]) for channel in contexts[0]}
        return {c: Channel(_round(s.size), _round(s.loss), _round(references[c].z(s))) for c, s in means.items()}

    def _references(self, given: Line, a: int, b: int, name: str) -> Mapping[str, ReferenceStatistics]:
        """Of a neutral context on the same side of item a as b; of neutral items in its place for the rest."""
        bare, bank = phrase(given.prompt, given.spans[a]), self.banks[name]
        if b == REST:
            start, stop = bare.stands_for
            return bank.alone(given.prompt[:start], given.prompt[stop:])
        return bank.statistics(_bare(given, a), given.spans[a] < given.spans[b])

    def _pair(self, given: Line, a: int, b: int, name: str) -> Mapping[str, Shift]:
        """What item b does to item a where nothing else stands."""
        return self.banks[name].pair(_bare(given, a), _bare(given, b), given.spans[a] < given.spans[b])


def scores(result: PromptLint, given: Line) -> list[tuple[float, bool]]:
    """(z, does it leak?) of every item of a labelled prompt. Raises BadInput for a line without labels or results."""
    if result.error is not None or given.leaks is None:
        raise BadInput(f"line {given.number}: {result.error or 'no field leaks that says which items leak'}")
    return [(item.z, leaks) for item, leaks in zip(result.items, given.leaks, strict=True)]


def calibrate(linter: Linter, lines: Iterable[Line], source: str) -> RiskCalibration:
    """The calibration of the linter's encoders from labelled prompts; errors: `scores`, `fit`."""
    first, again = tee(lines)
    pairs = [pair for result, given in zip(linter(first), again, strict=True) for pair in scores(result, given)]
    return fit([z for z, _ in pairs], [leaks for _, leaks in pairs], linter.digests, source)


def lines_of(prompts: Iterable[str | Line], watched: Watched) -> Iterator[Line]:
    """The prompts as lines, numbered from 1; one that cannot be used says why."""
    for number, prompt in enumerate(prompts, 1):
        try:
            yield prompt if isinstance(prompt, Line) else line(number, prompt, watched=watched)
        except BadInput as e:
            yield Line(number, error=str(e))


def _by_sense(given: Line) -> dict[tuple[str, int, int], Sentence]:
    """("sense", item, rank) -> the prompt with the item named by that sense, for items with more senses than one."""
    out = {}
    for a, item in enumerate(given.items):
        names = _names(item)
        for k, name in enumerate(names if len(names) > 1 else ()):
            text, placed = rename(given.prompt, [(at, name if i == a else None) for i, at in enumerate(given.spans)])
            out["sense", a, k] = Sentence(text, tuple((i, p.item) for i, p in enumerate(placed)))
    return out


def _bare(given: Line, a: int) -> Bare:
    bare = phrase(given.prompt, given.spans[a])
    return bare.text, bare.item


def _names(item: Item) -> list[str]:
    """The senses that are known, the intended one first."""
    return [name.strip() for name in (item.sense or item.text).split("|")]


def _label(item: Item) -> str:
    return str(Item(item.text, item.occurrence))


def _round(x: float) -> float:
    return round(x, 3) + 0.0  # no -0.0


def _key(cut: Cut) -> tuple[Any, ...]:
    return cut.tokens.ids, tuple(cut.spans.items())

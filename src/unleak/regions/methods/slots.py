"""Where the objects of a prompt stand, in the prompt and in the text that encodes each by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from unleak.errors import SpanMismatch, UnsupportedModel
from unleak.text.eos_pads import aligned
from unleak.text.items import Item
from unleak.text.match import Chars
from unleak.text.phrases import past_article
from unleak.text.positions import Positions, columns_of, readable
from unleak.text.spans import Span, Tokens, token_span
from unleak.text.without import without

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.text.call import Encoded, TextCall


class OwnText(NamedTuple):
    """The text that encodes one object, and the characters of it that are the object.

    `others` are the other objects, as ranges of the prompt and of this text, between which both say the same; None:
    this text says nothing of them.
    """

    text: str
    at: Chars
    others: tuple[tuple[Chars, Chars], ...] | None = None

    @classmethod
    def alone(cls, prompt: str, item: Item) -> OwnText:
        """The object's phrase and nothing else."""
        phrase = prompt[slice(*item.find(prompt))]
        return cls(phrase, (0, len(phrase)))


def among_things(prompt: str, items: Sequence[Item]) -> list[OwnText]:
    """The prompt once for each item, with all the others just a thing.

    ``among_things("a cup and a mouse", [cup, mouse])`` -> "a cup and a thing", "a thing and a mouse".
    """
    spans = [item.find(prompt) for item in items]
    bare = [past_article(prompt, span) for span in spans]
    texts = []
    for i, kept in enumerate(spans):
        own_spans = [kept if j == i else at for j, at in enumerate(bare)]
        text, phrases = without(prompt, own_spans, {j for j in range(len(items)) if j != i})
        others = tuple((at, phrases[j].item) for j, at in enumerate(bare) if j != i)
        texts.append(OwnText(text, phrases[i].item, others))
    return texts


class Slot(NamedTuple):
    """One object: its `span` in the prompt, its span `own` in its own text, the `end` of that text; and the positions
    of the words between the objects, in the prompt and, in the same order, in the own text; none where that says
    nothing of the others."""

    span: Span
    own: Span
    end: int
    between: tuple[int, ...] = ()
    own_between: tuple[int, ...] = ()


@dataclass(frozen=True)
class Slots:
    """Every object of a prompt, and `stop`, the first row after the prompt's text."""

    objects: tuple[Slot, ...]
    stop: int

    @property
    def spans(self) -> tuple[Span, ...]:
        """Of each object, in the prompt."""
        return tuple(slot.span for slot in self.objects)


def slots_of(encoded: Encoded, prompt: str, items: Sequence[Item], texts: Sequence[OwnText], find: str) -> Slots:
    """Where the objects stand among the denoiser's text rows, for every encoder that it reads.

    Args:
        find: ``"words"``: an object of the prompt is found by its words. ``"first"``: by its token ids, where they
            first occur, as in the release of ALE.

    Raises:
        SpanMismatch: an object, or what stands between objects, has other tokens in its own text than in the prompt.
        UnsupportedModel: the encoders cut the prompt in different places.
    """
    by_encoder = {}
    for call in (encoded.calls[name] for name in readable(encoded)):
        tokens = _cut(call, prompt)
        slots = [_slot(call, tokens, *one, find) for one in zip(items, texts, strict=True)]
        objects = tuple(_among_rows(encoded, call, prompt, *one) for one in zip(slots, texts, strict=True))
        by_encoder[call.name] = Slots(objects, _row_after(encoded, call, prompt, tokens.body[1]))
    if len(set(by_encoder.values())) != 1:
        raise UnsupportedModel(f"the encoders {sorted(by_encoder)} cut {prompt!r} in different places")
    return next(iter(by_encoder.values()))


def _slot(call: TextCall, prompt: Tokens, item: Item, text: OwnText, find: str) -> Slot:
    own_tokens = _cut(call, text.text)
    own = _span(call, own_tokens, text.at)
    span = _first_match(prompt, own_tokens, own) if find == "first" else _span(call, prompt, item.find(prompt.text))
    if own[1] - own[0] != span[1] - span[0]:
        phrase = text.text[slice(*text.at)]
        raise SpanMismatch(
            f"{call.name} cuts {phrase!r} into other tokens in {text.text!r} than in {prompt.text!r}: rename it"
        )
    slot = Slot(span, own, own_tokens.body[1])
    if text.others is None:
        return slot
    in_prompt = [item.find(prompt.text), *(there for there, _ in text.others)]
    in_own = [text.at, *(here for _, here in text.others)]
    between, own_between = _outside(call, prompt, in_prompt), _outside(call, own_tokens, in_own)
    if len(between) != len(own_between):
        raise SpanMismatch(
            f"{call.name} cuts the words between the objects of {prompt.text!r} into other tokens in {text.text!r}:"
            " take rest='alone'"
        )
    return slot._replace(between=between, own_between=own_between)


def _among_rows(encoded: Encoded, call: TextCall, prompt: str, slot: Slot, text: OwnText) -> Slot:
    """A slot of an encoder's tokens as one of the denoiser's text rows."""

    def rows(of: str, positions: Iterable[int]) -> Positions:
        return columns_of(encoded, call.name, of, positions)

    def span(of: str, own: Span) -> Span:
        found = rows(of, range(*own))
        if found != tuple(range(found[0], found[-1] + 1)):
            raise UnsupportedModel(
                f"the pipeline takes the rows of {call.name} apart, so that no object is in one piece"
            )
        return found[0], found[-1] + 1

    return Slot(
        span(prompt, slot.span),
        span(text.text, slot.own),
        _row_after(encoded, call, text.text, slot.end),
        rows(prompt, slot.between),
        rows(text.text, slot.own_between),
    )


def _row_after(encoded: Encoded, call: TextCall, text: str, position: int) -> int:
    """The denoiser's text row behind that of the token before a position."""
    return columns_of(encoded, call.name, text, [position - 1])[0] + 1


def _cut(call: TextCall, text: str) -> Tokens:
    return call.cut([text])[0]


def _span(call: TextCall, tokens: Tokens, at: Chars) -> Span:
    return token_span(call.tokenizer, tokens, at, call.name)


def _outside(call: TextCall, tokens: Tokens, objects: Sequence[Chars]) -> tuple[int, ...]:
    """Positions of the text's own tokens in none of the objects."""
    spans = [_span(call, tokens, at) for at in objects]
    return tuple(i for i in range(*tokens.body) if not any(start <= i < stop for start, stop in spans))


def _first_match(prompt: Tokens, text: Tokens, span: Span) -> Span:
    """Where the phrase's token ids first occur among the prompt's. Raises SpanMismatch."""
    ids = text.ids[slice(*span)]
    for start in range(len(prompt.ids)):
        if prompt.ids[start : start + len(ids)] == ids:
            return start, start + len(ids)
    raise SpanMismatch(f"the tokens of {text.text!r} are not among those of {prompt.text!r}: use find='words'")


class Pair(NamedTuple):
    """Rows of a prompt, and those of another text that stand for them, one for each."""

    rows: list[int]
    text: str
    own: list[int]


def object_pairs(call: TextCall, prompt: str, phrases: Sequence[str], alone: bool) -> list[Pair]:
    """Each object's rows, and those it has in its phrase `alone`, or among things. Raises as `slots_of`."""
    items, tokens = [Item.of(phrase) for phrase in phrases], _cut(call, prompt)
    texts = [OwnText.alone(prompt, item) for item in items] if alone else among_things(prompt, items)
    slots = [
        _slot(call, tokens, item, text._replace(others=None), "words") for item, text in zip(items, texts, strict=True)
    ]
    return [Pair([*range(*slot.span)], text.text, [*range(*slot.own)]) for slot, text in zip(slots, texts, strict=True)]


def neutral_pairs(call: TextCall, prompt: str, phrases: Sequence[str]) -> Pair:
    """The rows of no object, EOS and pads, and those of the prompt in which every object is "a thing".

    Raises SpanMismatch: the words between the objects have other tokens there.
    """
    bare = [past_article(prompt, Item.of(phrase).find(prompt)) for phrase in phrases]
    text, things = without(prompt, bare, set(range(len(bare))))
    tokens, own = _cut(call, prompt), _cut(call, text)
    between, own_between = _outside(call, tokens, bare), _outside(call, own, [thing.item for thing in things])
    if len(between) != len(own_between):
        raise SpanMismatch(
            f"{call.name} cuts the words between the objects of {prompt!r} into other tokens in {text!r}: take "
            "rest='prompt'"
        )
    return Pair([*between, *tokens.after_text], text, [*own_between, *aligned(tokens, own)])


def text_rows(encoded: Encoded, prompt: str, phrases: Sequence[str]) -> list[list[int]]:
    """Of each phrase of a prompt, the denoiser's text rows that its words have in any encoder.

    Raises ItemNotFound, AmbiguousItem, PromptTruncated; UnsupportedModel: no encoder's rows reach the denoiser.
    """
    names, items = readable(encoded), [Item.of(phrase) for phrase in phrases]

    def rows(item: Item, name: str) -> Positions:
        call = encoded.calls[name]
        span = _span(call, _cut(call, prompt), item.find(prompt))
        return columns_of(encoded, name, prompt, range(*span))

    return [list(dict.fromkeys(i for name in names for i in rows(item, name))) for item in items]


def reads_text(site: AttentionCall) -> bool:
    """Whether the picture reads the text there, in cross-attention or jointly."""
    return site.kind != "self"

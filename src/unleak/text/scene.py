"""What one text encoder says about the items of its prompts: together, alone, renamed, masked, separated.

A `Scene` is one encoder call with its items found in it. Its views are encodings made on demand, each at most
once, each of all B prompts of the call, with the call's own length and settings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unleak.errors import BadInput, PromptTruncated, UnsupportedModel
from unleak.text.call import TextCall, stacked
from unleak.text.causal import is_causal
from unleak.text.items import Item, find_all
from unleak.text.phrases import Phrase, phrase
from unleak.text.rows import last_layer
from unleak.text.separate import apart, hidden, separated
from unleak.text.spans import Span, Tokens, token_span
from unleak.text.without import THING, without


class Placed(NamedTuple):
    """B texts as the encoder's tokenizer cuts them, and where the items are.

    ``spans[b][i]`` is the token span of item i in text b, ``names[b][i]`` that of the name it has there
    ("furry mouse"), ``phrases[b][i]`` that of its name with its article.
    """

    tokens: tuple[Tokens, ...]
    spans: tuple[dict[int, Span], ...]
    names: tuple[dict[int, Span], ...]
    phrases: tuple[dict[int, Span], ...]


class View(NamedTuple):
    """One encoding of B texts: the encoder's model output, and the fields of `Placed`."""

    output: Any
    tokens: tuple[Tokens, ...]
    spans: tuple[dict[int, Span], ...]
    names: tuple[dict[int, Span], ...]
    phrases: tuple[dict[int, Span], ...]


Texts = list[tuple[str, dict[int, Phrase]]]
"""B texts, each with the phrases of the items in it, as ranges of that text."""


class Scene:
    """The views of one call. Items are numbered as given: first ``items``, then ``others``.

    Args:
        items: the items to repair. others: further items of the same prompts.
        article: as in `unleak.text.phrases.phrase`.
        filler: a text of one token that stands in for a masked item.
        substitute: a word for any object at all, in the place of an item that is replaced.

    Raises:
        ItemNotFound, AmbiguousItem, PromptTruncated, BadInput: an item is not usable in one of the prompts.
    """

    def __init__(
        self,
        call: TextCall,
        items: Sequence[Item],
        others: Sequence[Item] = (),
        article: str = "auto",
        filler: str = ",",
        substitute: str = THING,
    ) -> None:
        self.call, self.article, self.filler, self.substitute = call, article, filler, substitute
        self.named = (*items, *others)
        self.every = range(len(self.named))
        self.items, self.others = self.every[: len(items)], self.every[len(items) :]
        self._item_spans = [find_all(prompt, self.named) for prompt in call.prompts]
        self._views: dict[tuple[Any, ...], View] = {}
        self.prompt = View(call.output, *self._place(self._sentences([None] * len(self.named))))

    @property
    def length(self) -> int:
        """L."""
        return self.call.ids.shape[1]

    @cached_property
    def causal(self) -> bool:
        """Does meaning flow left to right only in this encoder?"""

        def encode(texts: list[str]) -> tuple[Tensor, Any]:
            tokens = self._cut(texts)
            return stacked(tokens)[0], self.call.encoded(tokens)

        return is_causal(self.call.module, encode)

    @cached_property
    def empty(self) -> View:
        """The empty text: clean pad rows."""
        tokens = (self.call.neutral(),) * len(self.call.prompts)
        return self._view(Placed(tokens, ({},) * len(tokens), ({},) * len(tokens), ({},) * len(tokens)))

    @cached_property
    def renamed(self) -> View:
        """The prompts with every item that has a sense named by it."""
        return self._view(self._by_sense)

    def alone(self, i: int) -> View:
        """Item i's bare phrase, by its sense if it has one: "a mouse"."""
        return self._once(("alone", i), lambda: self._view(self._place(self._phrases(i))))

    def positioned(self, i: int) -> View:
        """Item i's bare phrase after as many fillers as put the item where it stands in the prompt."""
        return self._once(("positioned", i), lambda: self._shifted(i))

    def masked(self, keep: Collection[int]) -> View:
        """The (renamed) prompts with the filler on every token of the items that are not in ``keep``."""
        return self._once(("masked", *sorted(keep)), lambda: self._masked(set(self.every) - set(keep)))

    def substituted(self, keep: Collection[int]) -> View:
        """The (renamed) prompts with the items that are not in ``keep`` replaced: "a mouse and a thing"."""
        gone, senses = set(self.every) - set(keep), [item.sense for item in self.named]
        return self._once(
            ("substituted", *sorted(keep)), lambda: self._view(self._place(self._sentences(senses, gone)))
        )

    @cached_property
    def separated(self) -> View:
        """The (renamed) prompts, each item's phrase attending to itself alone (and to BOS, if causal)."""
        view = self.renamed
        return self._closed(view, apart(view.tokens, view.phrases, self.causal))

    def hidden(self, keep: Collection[int]) -> View:
        """The (renamed) prompts with no row attending to the items that are not in ``keep``, but their own."""

        def make() -> View:
            view = self.renamed
            unseen = [{i: span for i, span in spans.items() if i not in keep} for spans in view.phrases]
            return self._closed(view, hidden(view.tokens, unseen))

        return self._once(("hidden", *sorted(keep)), make)

    # How views are made.

    def _closed(self, view: View, closed: Tensor) -> View:
        dtype = last_layer(view.output).dtype

        def encode(allowed: Tensor) -> Any:
            forbidden = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
            return self.call.encoded(view.tokens, attention_mask=forbidden[:, None].to(self.call.ids.device))

        return view._replace(output=separated(encode, view.output, view.tokens, closed, self.causal))

    def _once(self, key: tuple[Any, ...], make: Callable[[], View]) -> View:
        if key not in self._views:
            self._views[key] = make()
        return self._views[key]

    @cached_property
    def _by_sense(self) -> Placed:
        return self._place(self._sentences([item.sense for item in self.named]))

    def _sentences(self, senses: Sequence[str | None], gone: Collection[int] = ()) -> Texts:
        texts: Texts = []
        for prompt, spans in zip(self.call.prompts, self._item_spans, strict=True):
            text, phrases = without(prompt, spans, gone, self.substitute, senses)
            texts.append((text, dict(enumerate(phrases))))
        return texts

    def _phrases(self, i: int) -> Texts:
        texts: Texts = []
        for prompt, spans in zip(self.call.prompts, self._item_spans, strict=True):
            new = phrase(prompt, spans[i], self.named[i].sense, self.article)
            texts.append((new.text, {i: new._replace(stands_for=(0, len(new.text)))}))
        return texts

    def _place(self, texts: Texts) -> Placed:
        tokens = self._cut([text for text, _ in texts])
        spans, names, phrases = [], [], []
        for cut, (_, placed) in zip(tokens, texts, strict=True):
            spans.append({i: self._span(cut, p.item) for i, p in placed.items()})
            names.append({i: self._span(cut, p.name) for i, p in placed.items()})
            phrases.append({i: self._span(cut, p.stands_for) for i, p in placed.items()})
        return Placed(tokens, tuple(spans), tuple(names), tuple(phrases))

    def _view(self, placed: Placed) -> View:
        return View(self.call.encoded(placed.tokens), *placed)

    def _masked(self, hidden: set[int]) -> View:
        placed, tokens = self._by_sense, []
        for cut, spans in zip(placed.tokens, placed.spans, strict=True):
            gone = {row for i in hidden for row in range(*spans[i])}
            tokens.append(replace(cut, ids=tuple(self._filler_id if p in gone else k for p, k in enumerate(cut.ids))))
        return View(self.call.encoded(tokens), *placed)

    def _shifted(self, i: int) -> View:
        bare, tokens, spans = self.alone(i), [], []
        for b, cut in enumerate(bare.tokens):
            k = max(0, self.prompt.spans[b][i][0] - bare.spans[b][i][0])
            tokens.append(self._pushed(cut, k))
            spans.append({i: (bare.spans[b][i][0] + k, bare.spans[b][i][1] + k)})
        return self._view(Placed(tuple(tokens), tuple(spans), (), ()))

    def _pushed(self, tokens: Tokens, k: int) -> Tokens:
        """The same text after k fillers, which take the place of pads."""
        pads = [p for p, real in enumerate(tokens.real) if not real]
        if pads and pads[0] < tokens.body[0]:
            raise UnsupportedModel(f"{self.call.name} pads on the left: isolation='positioned' has no meaning.")
        if self.call.given is not None:  # a template may be as long as the text; then it grows
            tokens = self.call.padded(tokens)
            pads = [p for p, real in enumerate(tokens.real) if not real]
        if len(pads) < k:
            raise PromptTruncated(f"{tokens.text!r} does not fit into {self.call.name} after {k} fillers.")
        a, gone = tokens.body[0], set(pads[len(pads) - k :])

        def push(old: tuple, new: Any) -> tuple:
            return (*old[:a], *(new,) * k, *(one for p, one in enumerate(old) if p >= a and p not in gone))

        return replace(
            tokens,
            ids=push(tokens.ids, self._filler_id),
            offsets=push(tokens.offsets, (0, 0)),
            words=push(tokens.words, True),
            real=push(tokens.real, True),
        )

    @cached_property
    def _filler_id(self) -> int:
        (tokens,) = self._cut([self.filler])
        start, stop = tokens.body
        marks = sum(not self.call.tokenizer.decode([k]).strip() for k in tokens.ids[start:stop])
        if stop - start - marks != 1:
            raise BadInput(f"The filler {self.filler!r} has more than one token in {self.call.name}: choose another.")
        return tokens.ids[stop - 1]

    def _cut(self, texts: Sequence[str]) -> tuple[Tokens, ...]:
        tokens = self.call.cut(texts)
        for one in tokens:
            if one.lost:
                raise PromptTruncated(f"{one.text!r} does not fit into the {one.length} tokens of {self.call.name}.")
        return tokens

    def _span(self, tokens: Tokens, chars: tuple[int, int]) -> Span:
        return token_span(self.call.tokenizer, tokens, chars, f"{self.call.name}'s tokenizer")

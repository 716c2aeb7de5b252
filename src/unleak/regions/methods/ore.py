"""Object-restricted embeddings (ORE): each object of a prompt gets an encoding of its own, also in EOS and pads.

Source: ALE (arXiv 2412.04715). A causal encoder gathers the whole prompt in its EOS and pad rows, so an object that
reads them reads every other object. ORE encodes each object's phrase alone and lays it into the slots that it has in
the prompt. With b the first row after the prompt's text, F_i the phrase i alone and n_i its tokens,

    E_i[0] = enc(prompt)[0]        E_i[span_i] = F_i[1 : 1 + n_i]
    E_i[1 : b] = 0 elsewhere       E_i[b : L]  = F_i[1 + n_i : 1 + n_i + L - b]
    E_base = enc(prompt) with E_base[span_i] = F_i[1 : 1 + n_i] for every i

`rest` says what E_i holds besides its object. "alone" is the above, in which nothing tells that there are other
things. With "neutral", F_i is the prompt in which every other object is just "a thing", and E_i also has F_i's rows of
the words between objects ("and a"), where zeros would take attention and say nothing. With "prompt", E_i is
enc(prompt) outside of span_i, with other objects' traces in EOS and pads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from unleak.core.edits import Partition, Region
from unleak.core.intervention import Intervention
from unleak.errors import SpanMismatch, UnsupportedModel, choose
from unleak.regions.methods.images import Phrases, each_list, frozen, own_prompts, rows_of
from unleak.text.items import Item
from unleak.text.match import Chars
from unleak.text.phrases import past_article, rename
from unleak.text.positions import readable
from unleak.text.spans import Span, Tokens, token_span, tokenize

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

BASE_INDEX = ("paper", "official")
KEY_EMBED = ("plain", "base")
FIND = ("words", "first")
REST = ("alone", "neutral", "prompt")
THING = "thing"  #: what every other object is with rest="neutral"


class Own(NamedTuple):
    """A text that an object is encoded in, and where in it the object is.

    `company` are the other objects, as ranges of the prompt and of this text, between which both say the same; None:
    this text says nothing of them.
    """

    text: str
    at: Chars
    company: tuple[tuple[Chars, Chars], ...] | None = None


@dataclass(frozen=True)
class Slots:
    """Where objects stand: `spans` in the prompt and `alone` in the texts that they are encoded in, whose ends are
    `ends`; `stop` is the prompt's b. `between` are the positions of the words between objects, for each object in the
    prompt and in its text; empty where its text says nothing of the others."""

    spans: tuple[Span, ...]
    alone: tuple[Span, ...]
    ends: tuple[int, ...]
    stop: int
    between: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


@dataclass(frozen=True, eq=False)
class Embeddings:
    """`own` [K, L, D], one for each object; `base` [L, D] for what belongs to none; `plain` [L, D], the prompt's
    ordinary rows, with its `pooled` vector [1, P] where it was encoded here and the model has one."""

    own: Tensor
    base: Tensor
    plain: Tensor
    slots: Slots
    pooled: Tensor | None = None

    @property
    def stacked(self) -> Tensor:
        """[K + 1, L, D], the base last."""
        return torch.cat([self.own, self.base[None]])


def embeddings(
    plain: Tensor, alone: Tensor, slots: Slots, base_index: str = "paper", rest: str = "alone"
) -> Embeddings:
    """The equations above, for the prompt's rows `plain` [L, D] and those of the texts `alone` [K, L, D].

    `base_index="official"` is the authors' release, which fills E_base with the rows of F_i at the *prompt's*
    positions, so that objects after the first get EOS or pad rows.
    """
    length = len(plain)
    own, base = plain.expand_as(alone).clone(), plain.clone()
    where = zip(own, alone, slots.spans, slots.alone, slots.ends, strict=True)
    for E, F, (start, end), (first, after), stop in where:
        if rest != "prompt":
            E[1 : slots.stop] = 0
            kept = F[stop : stop + length - slots.stop]
            E[slots.stop :] = torch.cat([kept, F[-1:].expand(length - slots.stop - len(kept), -1)])
        E[start:end] = F[first:after]
        base[start:end] = F[first:after] if base_index == "paper" else F[start:end]
    if rest != "prompt":
        for E, F, (here, there) in zip(own, alone, slots.between, strict=False):
            E[list(here)] = F[list(there)]
    return Embeddings(own, base, plain, slots)


def among_things(prompt: str, items: Sequence[Item]) -> list[Own]:
    """The prompt once for each item, with all the others just a thing.

    ``among_things("a cup and a mouse", [cup, mouse])`` -> "a cup and a thing", "a thing and a mouse".
    """
    spans = [item.find(prompt) for item in items]
    bare = [past_article(prompt, span) for span in spans]
    made = []
    for i, kept in enumerate(spans):
        text, phrases = rename(prompt, [(kept, None) if j == i else (at, THING) for j, at in enumerate(bare)])
        company = tuple((at, phrases[j].item) for j, at in enumerate(bare) if j != i)
        made.append(Own(text, phrases[i].item, company))
    return made


def embed(
    ctx: Context,
    prompts: Sequence[str],
    objects: Sequence[Sequence[str]],
    base_index: str,
    find: str,
    plain: Sequence[Tensor] | None = None,
    rest: str = "alone",
) -> list[Embeddings]:
    """ORE of the objects of each prompt with the pipeline's own encoders: all of them in one batched call.

    Args:
        objects: of each prompt, as `Item.of` writes them ("red car", "red car#2"), each found in the prompt.
        plain: the rows [L, D] of each prompt, where they are known already.

    Raises:
        ItemNotFound, AmbiguousItem: an object is not in the prompt, or more than once.
        PromptTruncated: the prompt is longer than an encoder.
        SpanMismatch: an object, or what stands between objects, has other tokens in its own text than in the prompt.
        UnsupportedModel: the encoders cut the prompt in different places.
    """
    items = [[Item.of(one) for one in some] for some in objects]
    if rest == "neutral":
        encoded = [among_things(p, some) for p, some in zip(prompts, items, strict=True)]
    else:
        phrases = [[p[slice(*item.find(p))] for item in some] for p, some in zip(prompts, items, strict=True)]
        encoded = [[Own(phrase, (0, len(phrase))) for phrase in some] for some in phrases]
    slots = [_common_slots(ctx, *one, find) for one in zip(prompts, items, encoded, strict=True)]
    texts = [one.text for some in encoded for one in some] + ([*prompts] if plain is None else [])
    rows, pooled = ctx.encode(texts)
    each = [len(some) for some in encoded]
    alone, whole = rows[: sum(each)].split(each), rows[sum(each) :] if plain is None else plain
    made = [embeddings(*one, base_index, rest) for one in zip(whole, alone, slots, strict=True)]
    if pooled is None or plain is not None:
        return made
    return [replace(one, pooled=vector[None]) for one, vector in zip(made, pooled[sum(each) :], strict=True)]


def _common_slots(ctx: Context, prompt: str, items: Sequence[Item], texts: Sequence[Own], find: str) -> Slots:
    """Where the objects stand for every encoder that the denoiser reads."""
    found = {
        call.name: _slots(call.name, call.tokenizer, call.length, prompt, items, texts, find)
        for call in (ctx.encoded.calls[name] for name in readable(ctx.encoded))
    }
    if len(set(found.values())) != 1:
        raise UnsupportedModel(f"the encoders {sorted(found)} cut {prompt!r} in different places")
    return next(iter(found.values()))


def _slots(
    name: str, tokenizer: Any, length: int, prompt: str, items: Sequence[Item], texts: Sequence[Own], find: str
) -> Slots:
    base = tokenize(tokenizer, prompt, length, name)
    encoded = [tokenize(tokenizer, own.text, length, name) for own in texts]
    alone = [token_span(tokenizer, one, own.at, name) for one, own in zip(encoded, texts, strict=True)]
    if find == "first":
        spans = [_first_match(base, one, own) for one, own in zip(encoded, alone, strict=True)]
    else:
        spans = [token_span(tokenizer, base, item.find(prompt), name) for item in items]
    for own, there, here in zip(texts, alone, spans, strict=True):
        if there[1] - there[0] != here[1] - here[0]:
            raise SpanMismatch(
                f"{name} cuts {own.text[slice(*own.at)]!r} into other tokens in {own.text!r} than in {prompt!r}:"
                " rename it"
            )
    between = [
        _between(tokenizer, name, (base, item.find(prompt)), (one, own.at), own.company)
        for own, one, item in zip(texts, encoded, items, strict=True)
        if own.company is not None
    ]
    return Slots(tuple(spans), tuple(alone), tuple(one.body[1] for one in encoded), base.body[1], tuple(between))


def _between(
    tokenizer: Any,
    name: str,
    prompt: tuple[Tokens, Chars],
    text: tuple[Tokens, Chars],
    company: Sequence[tuple[Chars, Chars]],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Positions of the words between objects, in the prompt and in an object's text; both with where the object is."""
    others = zip(*company, strict=True) if company else ((), ())
    here, there = (
        _outside(tokens, [token_span(tokenizer, tokens, at, name) for at in (own, *places)])
        for (tokens, own), places in zip((prompt, text), others, strict=True)
    )
    if len(here) != len(there):
        raise SpanMismatch(
            f"{name} cuts the words between the objects of {prompt[0].text!r} into other tokens in {text[0].text!r}:"
            " take rest='alone'"
        )
    return here, there


def _outside(tokens: Tokens, spans: Sequence[Span]) -> tuple[int, ...]:
    """Positions of the text's own tokens in none of these spans."""
    return tuple(i for i in range(*tokens.body) if not any(start <= i < stop for start, stop in spans))


def _first_match(base: Tokens, own: Tokens, span: Span) -> Span:
    """Where the phrase's token ids first occur among the prompt's, as the authors' release looks for them."""
    wanted = own.ids[slice(*span)]
    starts = (i for i in range(len(base.ids)) if base.ids[i : i + len(wanted)] == wanted)
    found = next(starts, None)
    if found is None:
        raise SpanMismatch(f"the tokens of {own.text!r} are not among those of {base.text!r}: use find='words'")
    return found, found + len(wanted)


@dataclass(frozen=True)
class ORE(Intervention):
    """Every image cell reads the prompt with each object's rows its own: E_base, without any mask.

    On its own it separates the objects' words and leaves EOS and pads entangled; `RGBCAM` adds the regions.

    Attributes:
        objects: phrases of the prompt ("red car", "red car#2"), or a list of them for each prompt of the call.
        base_index: ``"paper"`` or ``"official"``, see `embeddings`.
        key_embed: ``"plain"``: only values come from E_base. ``"base"``: keys as well.
        find: ``"words"``: by the words of the prompt. ``"first"``: the first match of token ids (the release).
    """

    objects: Phrases
    base_index: str = "paper"
    key_embed: str = "plain"
    find: str = "words"
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objects", frozen(self.objects))
        choose("base_index", self.base_index, BASE_INDEX)
        choose("key_embed", self.key_embed, KEY_EMBED)
        choose("find", self.find, FIND)

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Partition] | None:
        if not reads_text(site):
            return None
        if "regions" not in ctx.state:
            objects, everywhere = each_list(self.objects), torch.ones(1, 1, dtype=torch.bool)
            prompts, plain = own_prompts(ctx, len(objects))
            made = embed(ctx, prompts, objects, self.base_index, self.find, plain)
            keep_keys = self.key_embed == "plain"
            ctx.state["regions"] = [Region(everywhere, text=one.base, keep_keys=keep_keys) for one in made]
        regions = ctx.state["regions"]
        return [Partition([one], rows) for one, rows in zip(regions, rows_of(ctx, len(regions)), strict=True)]


def reads_text(site: AttentionCall) -> bool:
    """Whether this is a cross-attention site. Raises UnsupportedModel where text and image attend jointly."""
    if site.kind == "joint":
        raise UnsupportedModel(f"{site.name} attends jointly to text and image; editing does not yet know such sites")
    return site.kind == "cross"

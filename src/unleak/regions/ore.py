"""Object-restricted embeddings (ORE): each object of a prompt gets an encoding of its own, also in EOS and pads.

Source: ALE (arXiv 2412.04715). A causal encoder gathers the whole prompt in its EOS and pad rows, so an object that
reads them reads every other object. ORE encodes each object's phrase alone and lays it into the slots that it has in
the prompt. With b the first row after the prompt's text, F_i the phrase i alone and n_i its tokens,

    E_i[0] = enc(prompt)[0]        E_i[span_i] = F_i[1 : 1 + n_i]
    E_i[1 : b] = 0 elsewhere       E_i[b : L]  = F_i[1 + n_i : 1 + n_i + L - b]
    E_base = enc(prompt) with E_base[span_i] = F_i[1 : 1 + n_i] for every i

`rest` says where EOS and pads come from. "alone" is the above, in which nothing tells that there are other things. With
"neutral", F_i is the prompt in which every other object is just "a thing"; with "prompt", E_i is enc(prompt) outside of
span_i, with other objects' traces in EOS and pads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from unleak.core.edits import Partition, Region
from unleak.core.intervention import Intervention
from unleak.errors import BadInput, SpanMismatch, UnsupportedModel
from unleak.regions.images import Phrases, each_list, frozen, own_prompts, rows_of
from unleak.text.items import Item
from unleak.text.match import Chars
from unleak.text.phrases import past_article, rename
from unleak.text.spans import Span, Tokens, token_span, tokenize

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context

BASE_INDEX = ("paper", "official")
KEY_EMBED = ("plain", "base")
FIND = ("words", "first")
REST = ("alone", "neutral", "prompt")
THING = "thing"  #: what every other object is with rest="neutral"


@dataclass(frozen=True)
class Slots:
    """Where objects stand: `spans` in the prompt and `alone` in the texts that they are encoded in, whose ends are
    `ends`; `stop` is the prompt's b."""

    spans: tuple[Span, ...]
    alone: tuple[Span, ...]
    ends: tuple[int, ...]
    stop: int


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
    return Embeddings(own, base, plain, slots)


def among_things(prompt: str, items: Sequence[Item]) -> list[tuple[str, Chars]]:
    """The prompt once for each item, with all the others just a thing, and where the item stands in it.

    ``among_things("a cup and a mouse", [cup, mouse])`` -> "a cup and a thing", "a thing and a mouse".
    """
    spans = [item.find(prompt) for item in items]
    bare = [past_article(prompt, span) for span in spans]
    made = []
    for i, kept in enumerate(spans):
        text, phrases = rename(prompt, [(kept, None) if j == i else (at, THING) for j, at in enumerate(bare)])
        made.append((text, phrases[i].item))
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
        SpanMismatch: an object has other tokens alone than in the prompt.
        UnsupportedModel: the encoders cut the prompt in different places.
    """
    items = [[Item.of(one) for one in some] for some in objects]
    if rest == "neutral":
        encoded = [among_things(p, some) for p, some in zip(prompts, items, strict=True)]
    else:
        phrases = [[p[slice(*item.find(p))] for item in some] for p, some in zip(prompts, items, strict=True)]
        encoded = [[(phrase, (0, len(phrase))) for phrase in some] for some in phrases]
    slots = [_common_slots(ctx, *one, find) for one in zip(prompts, items, encoded, strict=True)]
    texts = [text for some in encoded for text, _ in some] + ([*prompts] if plain is None else [])
    rows, pooled = ctx.encode(texts)
    each = [len(some) for some in encoded]
    alone, whole = rows[: sum(each)].split(each), rows[sum(each) :] if plain is None else plain
    made = [embeddings(*one, base_index, rest) for one in zip(whole, alone, slots, strict=True)]
    if pooled is None or plain is not None:
        return made
    return [replace(one, pooled=vector[None]) for one, vector in zip(made, pooled[sum(each) :], strict=True)]


def _common_slots(
    ctx: Context, prompt: str, items: Sequence[Item], texts: Sequence[tuple[str, Chars]], find: str
) -> Slots:
    """Where the objects stand for every encoder."""
    found = {
        call.name: _slots(call.name, call.tokenizer, call.length, prompt, items, texts, find)
        for call in ctx.encoded.calls.values()
    }
    if len(set(found.values())) != 1:
        raise UnsupportedModel(f"the encoders {sorted(found)} cut {prompt!r} in different places")
    return next(iter(found.values()))


def _slots(
    name: str, tokenizer: Any, length: int, prompt: str, items: Sequence[Item], texts: Sequence[tuple[str, Chars]],
    find: str,
) -> Slots:  # fmt: skip
    base = tokenize(tokenizer, prompt, length, name)
    encoded = [tokenize(tokenizer, text, length, name) for text, _ in texts]
    alone = [token_span(tokenizer, one, at, name) for one, (_, at) in zip(encoded, texts, strict=True)]
    if find == "first":
        spans = [_first_match(base, one, own) for one, own in zip(encoded, alone, strict=True)]
    else:
        spans = [token_span(tokenizer, base, item.find(prompt), name) for item in items]
    for (text, at), own, span in zip(texts, alone, spans, strict=True):
        if own[1] - own[0] != span[1] - span[0]:
            raise SpanMismatch(
                f"{name} cuts {text[slice(*at)]!r} into other tokens in {text!r} than in {prompt!r}: rename it"
            )
    return Slots(tuple(spans), tuple(alone), tuple(one.body[1] for one in encoded), base.body[1])


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


def choose(name: str, value: str, among: Sequence[str]) -> str:
    """`value`, if it is one of the choices. Raises BadInput."""
    if value not in among:
        raise BadInput(f"{name}={value!r}: choose one of {', '.join(among)}")
    return value


def reads_text(site: AttentionCall) -> bool:
    """Whether this is a cross-attention site. Raises UnsupportedModel where text and image attend jointly."""
    if site.kind == "joint":
        raise UnsupportedModel(f"{site.name} attends jointly to text and image; editing does not yet know such sites")
    return site.kind == "cross"

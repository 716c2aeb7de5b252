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
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from unleak.core.edits import Partition, Region
from unleak.core.intervention import CROSS, JOINT, Intervention
from unleak.errors import UnsupportedModel, choose
from unleak.regions.methods.images import Phrases, each_list, frozen, own_prompts, rows_of
from unleak.regions.methods.joint import attends_jointly, check_joint, own_rows
from unleak.regions.methods.slots import OwnText, Slots, among_things, slots_of
from unleak.text.items import Item

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context
    from unleak.text.call import TextCall

BASE_INDEX = ("paper", "official")
KEY_EMBED = ("plain", "base")
FIND = ("words", "first")
REST = ("alone", "neutral", "prompt")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """`own` [K, L, D], E_i of each object; `base` [L, D], E_base for what belongs to none; `plain` [L, D], the prompt's
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
    """The equations above, for the prompt's rows `plain` [L, D] and those of the objects' texts `alone` [K, L, D].

    `base_index="official"` is the authors' release, which fills E_base with the rows of F_i at the *prompt's*
    positions, so that objects after the first get EOS or pad rows.
    """
    b, L = slots.stop, len(plain)
    own, base = plain.expand_as(alone).clone(), plain.clone()
    for E, F, slot in zip(own, alone, slots.objects, strict=True):
        span = slice(*slot.span)
        if rest != "prompt":
            E[1:b] = 0
            E[b:] = F[[min(slot.end + i, L - 1) for i in range(L - b)]]  # past F's end: its last pad
            E[list(slot.between)] = F[list(slot.own_between)]
        E[span] = F[slice(*slot.own)]
        base[span] = E[span] if base_index == "paper" else F[span]
    return Embeddings(own, base, plain, slots)


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
    items = [[Item.of(one) for one in phrases] for phrases in objects]
    own_texts = [
        among_things(prompt, some) if rest == "neutral" else [OwnText.alone(prompt, item) for item in some]
        for prompt, some in zip(prompts, items, strict=True)
    ]
    slots = [slots_of(ctx.encoded, *one, find) for one in zip(prompts, items, own_texts, strict=True)]
    texts = [own.text for some in own_texts for own in some]
    rows, pooled, _ = ctx.encode(texts if plain is not None else [*texts, *prompts])
    alone = rows[: len(texts)].split([len(some) for some in own_texts])
    whole = rows[len(texts) :] if plain is None else plain
    if any(len(one) != rows.shape[1] for one in whole):
        raise UnsupportedModel(
            f"{type(ctx.pipe).__name__} gives other numbers of rows to other texts ({len(whole[0])} to the prompt, "
            f"{rows.shape[1]} to those of its objects), and their rows are exchanged place by place: give it a length "
            "that all are padded to, if it takes one"
        )
    results = [embeddings(*one, base_index, rest) for one in zip(whole, alone, slots, strict=True)]
    if pooled is None or plain is not None:
        return results
    return [replace(one, pooled=vector[None]) for one, vector in zip(results, pooled[len(texts) :], strict=True)]


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
    layouts: ClassVar[tuple[str, ...]] = (CROSS, JOINT)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objects", frozen(self.objects))
        choose("base_index", self.base_index, BASE_INDEX)
        choose("key_embed", self.key_embed, KEY_EMBED)
        choose("find", self.find, FIND)

    def on_text(self, ctx: Context, call: TextCall) -> Any:
        """Where text and image attend jointly, the rows are the encoder's."""
        if not attends_jointly(ctx.anatomy):
            return None
        check_joint(self.base_index, self.find)
        return own_rows(call, each_list(self.objects), "prompt")

    def on_attention(self, ctx: Context, site: AttentionCall) -> list[Partition] | None:
        if site.kind != "cross":
            return None
        if "regions" not in ctx.state:
            objects, everywhere = each_list(self.objects), torch.ones(1, 1, dtype=torch.bool)
            prompts, plain = own_prompts(ctx, len(objects))
            each = embed(ctx, prompts, objects, self.base_index, self.find, plain)
            keep_keys = self.key_embed == "plain"
            ctx.state["regions"] = [Region(everywhere, text=one.base, keep_keys=keep_keys) for one in each]
        regions = ctx.state["regions"]
        return [Partition([one], rows) for one, rows in zip(regions, rows_of(ctx, len(regions)), strict=True)]


def is_cross(site: AttentionCall) -> bool:
    """Whether this is a cross-attention site. Raises UnsupportedModel where text and image attend jointly."""
    if site.kind == "joint":
        raise UnsupportedModel(f"{site.name} attends jointly to text and image; editing does not yet know such sites")
    return site.kind == "cross"

"""Object-restricted embeddings and regions where text and image attend jointly (SD3, FLUX, single streams). Ours.

There the text is a part of the sequence, so object i cannot have an encoding [L, D] of its own in its region, as in
cross-attention. The prompt's rows are divided instead: `own_rows` lets the rows of each object come from a text of its
own, and the rows of no object R (words between, EOS, pads) from the prompt in which every object is just "a thing", so
that no row tells of another object. With T_i the rows of object i and C_i its cells, `reads` says

    cells of C_i read     T_i, R and all cells         cells of no object read    R and all cells
    rows of T_i read      T_i, R and C_i               rows of R read             R and all cells

Each line is a part of the queries with a part of the keys: nothing of the size of the map is built. That text and cells
of a region read each other, and cells everything, is what regional prompts do in such models (Regional-Prompting-FLUX;
InvokeAI), with texts one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.core.edits import Bias, Mask
from unleak.errors import UnsupportedModel
from unleak.regions.methods.slots import neutral_pairs, object_pairs
from unleak.text.positions import columns_of, readable
from unleak.text.rows import Layer, each_layer

if TYPE_CHECKING:
    from unleak.core.context import Context
    from unleak.text.call import TextCall


def attends_jointly(anatomy: Anatomy) -> bool:
    """Whether text and image attend jointly in this denoiser: no site says that it reads other rows than its own."""
    return not any(getattr(site.module, "is_cross_attention", False) for site in anatomy.sites)


def own_rows(call: TextCall, objects: Sequence[Sequence[str]], rest: str) -> Any:
    """An encoder's output on B prompts in which the rows of objects come from texts of their own.

    Args:
        objects: of each prompt, as `Item.of` writes them; one list serves all.
        rest: ``"alone"``: an object's text is its phrase alone. ``"neutral"``: the prompt in which every other object
            is "a thing". In both the rows of no object know of none. ``"prompt"``: these stay, and the objects' are as
            for "neutral".

    Raises:
        ItemNotFound, AmbiguousItem, PromptTruncated. SpanMismatch: a text has other tokens there than the prompt.
    """
    each = list(objects) * (len(call.prompts) if len(objects) == 1 else 1)
    pairs = [
        (b, pair)
        for b, (prompt, phrases) in enumerate(zip(call.prompts, each, strict=True))
        for pair in (
            *([] if rest == "prompt" else [neutral_pairs(call, prompt, phrases)]),
            *object_pairs(call, prompt, phrases, alone=rest == "alone"),
        )
    ]
    others = call.rerun([pair.text for _, pair in pairs])

    def rows(layer: Layer) -> Tensor:
        H, G = layer(call.output).clone(), layer(others)
        for k, (b, pair) in enumerate(pairs):
            H[b, pair.rows] = G[k, pair.own].to(H)
        return H

    return each_layer(rows, call.output)


def base_rows(ctx: Context, prompts: Sequence[str], objects: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor | None]:
    """What the denoiser is given for other prompts, [n, L, D] and pooled [n, P], with the rows of each object from the
    prompt in which every other object is "a thing": `own_rows` with "prompt", for who has no encoder call."""
    encoded = ctx.encoded
    pairs = [
        (b, name, pair)
        for b, (prompt, phrases) in enumerate(zip(prompts, objects, strict=True))
        for name in readable(encoded)
        for pair in object_pairs(encoded.calls[name], prompt, phrases, alone=False)
    ]
    texts = list(dict.fromkeys(pair.text for _, _, pair in pairs))
    rows, pooled, _ = ctx.encode([*prompts, *texts])
    base, others = rows[: len(prompts)].clone(), dict(zip(texts, rows[len(prompts) :], strict=True))
    for b, name, pair in pairs:
        own = columns_of(encoded, name, pair.text, pair.own)
        base[b, columns_of(encoded, name, prompts[b], pair.rows)] = others[pair.text][list(own)]
    return base, None if pooled is None else pooled[: len(prompts)]


def reads(
    texts: Sequence[Sequence[int]], cells: Sequence[tuple[Tensor, Tensor]], length: int, rows: Sequence[int]
) -> list[Bias]:
    """The table above as keys that queries do not read.

    Args:
        texts: T_i, positions among the `length` text rows. cells: C_i and all others, bool [h, w] on the grid of the
            site; no two C_i meet. rows: of the batch.
    """
    edits = []
    for own, (_, outside) in zip(texts, cells, strict=True):
        others = [i for i in range(length) if i not in own]
        edits += [Mask(own, outside, rows), Mask(own, others, rows), Mask(outside, own, rows)]
    return edits


def check_joint(base_index: str, find: str) -> None:
    """Raise UnsupportedModel: what is asked for is how the release of ALE computes cross-attention."""
    if base_index == "official" or find == "first":
        raise UnsupportedModel(
            "base_index='official' and find='first' are how ALE's release computes cross-attention, and text and image "
            "attend jointly here: leave them out (preset ale)"
        )


def check_separate(texts: Sequence[Sequence[int]], objects: Sequence[str]) -> None:
    """Raise UnsupportedModel where a text row belongs to two objects, as encoders that cut words otherwise make it."""
    owner: dict[int, str] = {}
    for own, name in zip(texts, objects, strict=True):
        for i in own:
            if owner.setdefault(i, name) != name:
                raise UnsupportedModel(f"text row {i} belongs to {owner[i]!r} and {name!r}: name them further apart")

"""The denoiser's batch: its rows told apart by their text, grown by branches, and folded back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unleak.core.rows import LATENTS, MASK, POOLED, TEXT, Branch, Names, Rows
from unleak.errors import BadInput, UnsupportedModel

Arguments = Mapping[Names, Names]
"""What this denoiser calls an argument, by what denoisers call it."""

UNKNOWN: Arguments = {}

Texts = Tensor | Sequence[Tensor]
"""Text rows of several prompts or images: [n, L, D], or n tensors [L, D] of their own lengths."""


def label_rows(text: Texts, cond: Texts | None, uncond: Texts | None, images_per_prompt: int = 1) -> Rows:
    """Compare each text row [L, D] with the encoded prompts; exact equality, by content.

    A row that repeats the prompt once more is labelled as the prompt's once more.
    Where the negative prompt repeats the prompt, a row equals both: then `uncond` comes first, the order in
    which classifier-free guidance is batched, and a call that holds one of them is told by the tensor itself.
    """
    equal = {"cond": _equal(text, cond), "uncond": _equal(text, uncond)}
    batched = uncond is not None and len(text) > len(uncond)
    is_uncond = uncond is not None and text[0].data_ptr() == uncond[0].data_ptr()
    order = ("uncond", "cond") if batched or is_uncond else ("cond", "uncond")
    used: Counter[tuple[str, int]] = Counter()
    labels, images = [], []
    for row in range(len(text)):
        hits = [(name, i) for name in order for i in equal[name][row] if not used[name, i]]
        again = sorted(((name, i) for name in equal for i in equal[name][row]), key=used.__getitem__)
        name, image = (hits or again or [("unknown", row)])[0]
        used[name, image] += 1
        labels.append(name)
        images.append(image)
    return Rows(tuple(labels), tuple(images), images_per_prompt=images_per_prompt)


def _equal(text: Texts, encoded: Texts | None) -> list[list[int]]:
    """For each row of `text`, the positions in `encoded` that hold exactly the same numbers.

    Of two lengths one may be the other with padding around it; the nearest length counts.
    """
    pairs = [
        (i, j, a, b.to(a))
        for i, a in enumerate(text)
        for j, b in enumerate(() if encoded is None else encoded)
        if a.shape[1:] == b.shape[1:]
    ]
    same = torch.stack([_same(a, b) for _, _, a, b in pairs]).tolist() if pairs else []
    found: list[dict[int, int]] = [{} for _ in text]
    for (i, j, a, b), hit in zip(pairs, same, strict=True):
        if hit:
            found[i][j] = abs(len(a) - len(b))
    return [[j for j, apart in row.items() if apart == min(row.values())] for row in found]


def _same(a: Tensor, b: Tensor) -> Tensor:
    """Whether the shorter rows begin or end the longer ones."""
    n = min(len(a), len(b))
    begin = (a[:n] == b[:n]).all()
    return begin if len(a) == len(b) else begin | (a[len(a) - n :] == b[len(b) - n :]).all()


def grow(
    inputs: dict[str, Any], rows: Rows, branches: Sequence[Branch], known: Arguments = UNKNOWN
) -> tuple[dict[str, Any], Rows]:
    """The denoiser's arguments by name with the branches' rows appended to everything that is batched. `known` says
    which arguments hold latents and text.

    A branch whose `like` has no row in this call (another call of the step has it) adds none.
    """
    batch, keep = len(rows), list(range(len(rows)))
    labels, images, changed = list(rows.labels), list(rows.images), []
    for branch in branches:
        if branch.name in rows.known:
            raise BadInput(f"two branches are called {branch.name!r}")
        picked = [i for i in rows.first(branch.like) if branch.images is None or rows.images[i] in branch.images]
        changed.append((branch, range(len(keep), len(keep) + len(picked))))
        keep += picked
        labels += [branch.name] * len(picked)
        images += [rows.images[i] for i in picked]
    names = rows.known | {branch.name for branch in branches}
    grown = replace(rows, labels=tuple(labels), images=tuple(images), known=names)
    if len(keep) == batch:
        return inputs, grown
    inputs = take(inputs, batch, keep, known)
    for branch, where in changed:
        for called, value in branch.inputs.items() if where else ():
            _put(inputs, known.get(called, called), value, where, branch.mask, partly=called == LATENTS)
    return inputs, grown


def fits(inputs: Mapping[str, Any], branch: Branch, known: Arguments) -> bool:
    """Whether the text of a branch is as long as the text rows of this call, or these are lists."""
    texts = [inputs[name] for name in known.get(TEXT, TEXT) if isinstance(inputs.get(name), Tensor)]
    return branch.text is None or all(branch.text.shape[-2] == text.shape[1] for text in texts)


def with_text(inputs: dict[str, Any], branch: Branch, known: Arguments) -> dict[str, Any]:
    """The arguments of a call of its own, [n, ...], with the branch's text in all rows, of whatever length.

    What is as long as the text goes with it: its mask, positions [L], a table of them [L, 3] or [n, L, 3], and numbers
    that are its length.

    Raises:
        UnsupportedModel: the text is longer, and there are positions; or an argument as long as the text is none of
            these, such as the text of another encoder or layer.
    """
    (name,), text = known[TEXT], branch.text
    assert text is not None
    if inputs[name].ndim != 3:
        raise UnsupportedModel(f"{name} holds several layers of the text: give another text of as many tokens")
    n, before, after = len(inputs[name]), inputs[name].shape[1], text.shape[-2]
    mask = torch.ones(after) if branch.mask is None else branch.mask
    if MASK not in known and not bool(mask.all()):
        raise no_mask()

    def along(called: str, value: Any) -> Any:
        if called == name:
            return text.to(value).expand(n, -1, -1)
        if called in known.get(MASK, ()):
            return torch.cat([mask.to(value).expand(n, -1), value[:, before:]], 1)
        if isinstance(value, list | tuple):
            lengths = bool(value) and all(isinstance(item, int) and item == before for item in value)
            return type(value)([after] * len(value) if lengths else [along(called, item) for item in value])
        if not isinstance(value, Tensor) or before not in value.shape[: max(1, value.ndim - 1)] or value.shape == (n,):
            return value
        axis = max(0, value.ndim - 2)
        places = value.ndim < 4 and value.shape[axis] == before and (value.ndim == 1 or value.shape[-1] <= 4)
        if not places or after > before:
            fewer = "with fewer tokens, or as many" if places else "of as many tokens"
            raise UnsupportedModel(
                f"the other text has {after} rows, the prompt {before}, and {called} {tuple(value.shape)} goes with "
                f"these: give a text {fewer}"
            )
        return value.narrow(axis, 0, after)

    held = {called for names, own in known.items() if names not in (TEXT, MASK) for called in own}
    return {called: value if called in held else along(called, value) for called, value in inputs.items()}


def no_mask() -> UnsupportedModel:
    return UnsupportedModel(
        "some rows of the other text count for nothing, and the denoiser is given no mask for the prompt's, all of "
        "which count: give a text of as many tokens as the prompt"
    )


def whole(
    inputs: dict[str, Any], rows: Rows, branch: Branch, known: Arguments = UNKNOWN
) -> tuple[dict[str, Any], Rows]:
    """The pipeline's whole batch once more, with the branch's inputs in the rows that it is `like`.

    A pipeline with repeated rows divides its batch into groups inside the denoiser, so that none can be added.
    """
    like = [i for i in rows.of(branch.like) if branch.images is None or rows.images[i] in branch.images]
    inputs, n = take(inputs, len(rows), range(len(rows)), known), len({rows.images[i] for i in like})
    for names, value in branch.inputs.items():
        for group in range(0, len(like), n or 1):
            _put(inputs, known.get(names, names), value, like[group : group + n], branch.mask, partly=names == LATENTS)
    labels = tuple(branch.name if i in like else "beside" for i in range(len(rows)))
    return inputs, replace(rows, labels=labels, known=rows.known | {branch.name, "beside"})


def take(inputs: dict[str, Any], batch: int, keep: Sequence[int], known: Arguments = UNKNOWN) -> dict[str, Any]:
    """Rows `keep` of every batched tensor among the arguments, at any depth, and of lists with one for each row."""
    lengths = {t.shape[1] for t in _tensors(inputs) if t.ndim == 3 and t.shape[0] == batch}
    latents = [inputs[name] for name in known.get(LATENTS, LATENTS) if name in inputs]

    def pick(value: Tensor) -> Tensor:
        of_text = value.ndim > 3 and value.shape[1] == batch and not any(value is own for own in latents)
        if of_text and (value.shape[0] != batch or value.shape[2] in lengths):  # layers [n, batch, L, D]
            return value[:, list(keep)]
        return value[list(keep)] if _is_batched(value, batch, lengths) else value

    held = {name for names in known.values() for name in names}
    lists = {n: v for n, v in inputs.items() if isinstance(v, list) and (n in held or _is_list_of_rows(v, batch))}
    rest = {name: value for name, value in inputs.items() if name not in lists}
    taken = _map(rest, pick) | {name: [value[i] for i in keep] for name, value in lists.items()}
    return {name: taken[name] for name in inputs}


def equal_rows(inputs: Mapping[str, Any], rows: Rows, labels: Iterable[str]) -> list[int]:
    """For each row the first row with its label, one of `labels`, whose inputs are all equal; itself where none is.

    Rows that are held in lists are not compared.
    """
    first, chosen = list(range(len(rows))), [i for i, label in enumerate(rows.labels) if label in labels]
    if any(isinstance(value, list) for value in inputs.values()) or len(chosen) < 2:
        return first
    batched = take(dict(inputs), len(rows), chosen)
    columns = [
        _numbered(one if len(whole) == len(rows) else one.movedim(1, 0))
        for one, whole in zip(_tensors(batched), _tensors(inputs), strict=True)
        if one is not whole
    ]
    seen: dict[tuple[Any, ...], int] = {}
    for row, numbers in zip(chosen, torch.stack(columns, 1).tolist(), strict=True):
        first[row] = seen.setdefault((rows.labels[row], *numbers), row)
    return first


def _numbered(each: Tensor) -> Tensor:
    """A number for each row [n, ...]; equal rows have equal numbers."""
    return torch.unique(each.reshape(len(each), -1), dim=0, return_inverse=True)[1]


def _is_list_of_rows(value: list[Any], batch: int) -> bool:
    """A list with one tensor for each row of the batch, none of which is itself batched."""
    return len(value) == batch and all(isinstance(v, Tensor) and v.ndim > 1 and len(v) != batch for v in value)


def _is_batched(value: Tensor, batch: int, lengths: set[int]) -> bool:
    """First dimension is the batch, unless it is a table of positions: sequence length by 3 or 4 axes."""
    is_table = value.ndim == 2 and value.shape[1] <= 4 and value.shape[0] in lengths
    return value.ndim > 0 and value.shape[0] == batch and not is_table


def _map(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        lengths = {len(item) for item in value if isinstance(item, Tensor) and item.ndim}
        tables = len(lengths) > 1  # such as positions along each axis; what is batched is as long as the batch
        return value if tables else type(value)(_map(item, change) for item in value)
    return value


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _put(
    inputs: dict[str, Any], names: Names, value: Tensor, rows: Sequence[int], mask: Tensor | None, partly: bool = False
) -> None:
    """Write `value` into these rows of the argument that has one of these names; `take` made the tensors ours. Lists
    are given the rows that the mask lets count.

    `partly`: it may be a part at the beginning, as a picture's cells and channels are before those of its conditions.
    """
    if not names or (names == MASK and bool(value.all())):
        return
    holders = (inputs, *(item for item in inputs.values() if isinstance(item, dict)))
    for target in (holder.get(name) for holder in holders for name in names):
        if isinstance(target, Tensor):
            if value is mask:  # what goes on behind it stays
                target = target[:, : value.shape[-1]]
            own, room = value.shape[max(0, value.ndim - target.ndim + 1) :], target.shape[1:]
            part_fits = partly and len(own) == len(room) and all(a <= b for a, b in zip(own, room, strict=True))
            if own != room and not part_fits:
                raise BadInput(f"rows {tuple(value.shape)} do not fit the argument {names[0]} {tuple(target.shape)}")
            part = target[tuple(slice(n) for n in (len(target), *own))]
            part[list(rows)] = value.to(target).expand(len(rows), *own)
            return
        if isinstance(target, list):
            counts = None if mask is None else mask.bool().expand(len(rows), -1)
            each = value.expand(len(rows), *value.shape[-target[0].ndim :])
            for i, (row, own) in enumerate(zip(rows, each, strict=True)):
                target[row] = (own if counts is None else own[counts[i]]).to(target[row])
            return
    if names == MASK:
        raise no_mask()
    if names == POOLED:
        raise UnsupportedModel(
            f"no argument of the denoiser equals the pooled vector of the prompt; it is called with {sorted(inputs)}. "
            "Give `prompt`, and leave callbacks out that change its vectors"
        )
    raise BadInput(f"the denoiser is not called with an argument {' or '.join(names)}; it has {sorted(inputs)}")


def split(prediction: Tensor, rows: Rows) -> dict[str, Tensor]:
    """Predictions [R, ...] by label, each [images, ...] in the order of its rows."""
    return {name: prediction[list(rows.first(name))] for name in dict.fromkeys(rows.labels) if name != "unknown"}


def fold(prediction: Tensor, rows: Rows, changed: Tensor | Mapping[str, Tensor] | None, batch: int) -> Tensor:
    """The rows the pipeline asked for, without those of extra branches.

    A combined prediction [n, ...] is put into every guided row, so that `u + s (c - u)` gives exactly it for
    any scale s; a mapping replaces the rows of its labels, each image's first.
    """
    if changed is None:
        return prediction[:batch]
    where: Sequence[int] = range(batch)
    if isinstance(changed, Tensor):
        changed = dict.fromkeys(set(rows.labels[:batch]), changed)
    else:
        where = [i for name in changed for i in rows.first(name) if i < batch]
    out = prediction[:batch].clone()
    for i in where:
        if rows.labels[i] in changed:
            out[i] = changed[rows.labels[i]][rows.images[i]].to(out)
    return out

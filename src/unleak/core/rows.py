"""Rows of the denoiser's batch: whose each one is, and extra ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from unleak.errors import BadInput, UnsupportedModel, choose

Which = str | Sequence[int] | None
"""Rows by label ("cond", "uncond", a branch's name), by batch position, or None for all."""

Names = tuple[str, ...]
"""What denoisers call one argument."""

LATENTS: Names = ("sample", "hidden_states")
TEXT: Names = ("encoder_hidden_states",)
POOLED: Names = ("pooled vector",)
GUIDANCE: Names = ("guidance",)
MASK: Names = ("text mask",)


@dataclass(frozen=True)
class Rows:
    """Labels of the rows of one denoiser call; row i belongs to image `images[i]`, which is one of the
    `images_per_prompt` images of its prompt. Rows are labelled by content: every row with the prompt's is "cond"."""

    labels: tuple[str, ...]
    images: tuple[int, ...]
    known: frozenset[str] = frozenset({"cond", "uncond"})
    images_per_prompt: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, which: Which) -> tuple[int, ...]:
        """Batch positions; a known label without rows in this call gives ().

        Raises:
            BadInput: a label nobody gave, or a position outside the batch.
            UnsupportedModel: the label has no rows in this call, and other rows' text matches no encoded prompt.
        """
        if which is None:
            return tuple(range(len(self)))
        if isinstance(which, str):
            choose("branch", which, sorted(self.known))
            rows = tuple(i for i, label in enumerate(self.labels) if label == which)
            if not rows and "unknown" in self.labels:
                raise UnsupportedModel(
                    f"{self.labels.count('unknown')} of the denoiser's {len(self)} text rows equal no encoded prompt "
                    f"or negative prompt of this pipeline, and {which!r} may be among these. They come from "
                    "`prompt_embeds`, from a callback that changes them, or from another pipeline with the same "
                    "denoiser: give `prompt`, leave the callback out, attach to the other pipeline, or address rows by "
                    "position"
                )
            return rows
        if any(not 0 <= row < len(self) for row in which):
            raise BadInput(f"rows {list(which)} do not fit a batch of {len(self)}")
        return tuple(which)

    def first(self, which: Which) -> tuple[int, ...]:
        """`of`, without rows that repeat the label and image of an earlier one (perturbed guidance has a second row
        of the prompt)."""
        seen: dict[tuple[str, int], int] = {}
        for row in self.of(which):
            seen.setdefault((self.labels[row], self.images[row]), row)
        return tuple(seen.values())

    @property
    def repeat(self) -> bool:
        """Whether some label has more rows than one for an image."""
        return len(set(zip(self.labels, self.images, strict=True))) < len(self)

    def pairs(self, target: Which, source: Which) -> list[tuple[int, int]]:
        """Batch positions of each target row and of its source row; one source row may serve many targets.

        Raises:
            BadInput: the target rows cannot be divided evenly among the source rows.
        """
        targets, sources = self.of(target), self.of(source)
        if (targets and not sources) or (sources and len(targets) % len(sources)):
            raise BadInput(f"cannot give {len(targets)} target rows the parts of {len(sources)} source rows")
        return [(row, sources[i % len(sources)]) for i, row in enumerate(targets)]

    def by_prompt(self, which: Which = "cond") -> dict[int, list[int]]:
        """Batch positions of these rows by the number of their prompt, in the order of the batch."""
        groups: dict[int, list[int]] = {}
        for row in self.of(which):
            groups.setdefault(self.images[row] // self.images_per_prompt, []).append(row)
        return groups


@dataclass(frozen=True, eq=False)
class Branch:
    """Extra rows of the same denoiser call: copies of the rows labelled `like`, under a new name.

    `images` limits them to some images (default: all). `text` [L, D] or [images, L, D], `pooled` [P] or [images, P],
    `mask` [L] or [images, L] (which text rows count), `latents` [images, ...], `guidance` [1] or [images] (the scale,
    where the denoiser reads it as a number) and `replace` (argument name -> rows) give them other inputs than the rows
    they copy.
    """

    name: str
    like: str = "cond"
    images: tuple[int, ...] | None = None
    text: Tensor | None = None
    pooled: Tensor | None = None
    mask: Tensor | None = None
    latents: Tensor | None = None
    guidance: Tensor | None = None
    replace: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[Names, Tensor]:
        """What is written into the branch's rows, each under the names that denoisers have for it."""
        given = (
            (LATENTS, self.latents), (TEXT, self.text), (POOLED, self.pooled), (MASK, self.mask),
            (GUIDANCE, self.guidance),
        )  # fmt: skip
        known = {names: rows for names, rows in given if rows is not None}
        return known | {(name,): rows for name, rows in self.replace.items()}

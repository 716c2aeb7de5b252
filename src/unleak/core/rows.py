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
POOLED: Names = ("text_embeds", "pooled_projections")


@dataclass(frozen=True)
class Rows:
    """Labels of the rows of one denoiser call; row i belongs to image `images[i]`, which is one of the
    `images_per_prompt` images of its prompt."""

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
            UnsupportedModel: rows were asked for by label, but the call's text matches no encoded prompt.
        """
        if which is None:
            return tuple(range(len(self)))
        if isinstance(which, str):
            if "unknown" in self.labels:
                raise UnsupportedModel(
                    "the denoiser's text rows equal no encoded prompt, so its branches cannot be told apart; "
                    "call the pipeline with `prompt`, or address rows by position"
                )
            choose("branch", which, sorted(self.known))
            return tuple(i for i, label in enumerate(self.labels) if label == which)
        if any(not 0 <= row < len(self) for row in which):
            raise BadInput(f"rows {list(which)} do not fit a batch of {len(self)}")
        return tuple(which)

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
    `latents` [images, ...] and `replace` (argument name -> rows) give them other inputs than the rows they copy.
    """

    name: str
    like: str = "cond"
    images: tuple[int, ...] | None = None
    text: Tensor | None = None
    pooled: Tensor | None = None
    latents: Tensor | None = None
    replace: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[Names, Tensor]:
        """What is written into the branch's rows, each under the names that denoisers have for it."""
        given = ((LATENTS, self.latents), (TEXT, self.text), (POOLED, self.pooled))
        known = {names: rows for names, rows in given if rows is not None}
        return known | {(name,): rows for name, rows in self.replace.items()}

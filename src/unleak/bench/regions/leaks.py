"""What leaked in an edit of the embedded world, read off the image by its judge and compared with the truth."""

from __future__ import annotations

from typing import NamedTuple

from unleak.judges.glyphs import Found, Reading
from unleak.world.edits import EditCase
from unleak.world.grammar import SPAN, Thing
from unleak.world.vocabulary import Placement


class Outcome(NamedTuple):
    """One edited image.

    Attributes:
        hits: is each target, in its colour, in its own region?
        internal: (TIL) does a region show the glyph or the colour of another region's target, or what another one
            makes of its word? None for a single edit.
        external: (TEL) does the background show a target's glyph or colour, or a glyph that was not there?
        kept: the share of the distractors that are still there; None without any.
    """

    hits: tuple[bool, ...]
    internal: bool | None
    external: bool
    kept: float | None

    @property
    def clean(self) -> bool:
        """Every target is there and nothing leaked."""
        return all(self.hits) and not self.internal and not self.external


def outcome(case: EditCase, reading: Reading) -> Outcome:
    """What the judge's reading of an edited image says."""
    regions: list[list[Found]] = [[] for _ in case.edited]
    outside: list[Found] = []
    for sprite in reading.found:
        i = region_of(case, sprite)
        (outside if i is None else regions[i]).append(sprite)
    hits = tuple(any(_is(f, t) for f in own) for own, t in zip(regions, case.targets, strict=True))
    internal = any(
        f.glyph in case.misread or any(_brings(f, t) for j, t in enumerate(case.targets) if j != i)
        for i, own in enumerate(regions)
        for f in own
    )
    known = {p.glyph for p in case.distractors}
    external = reading.background in {t.tint for t in case.targets} or any(
        f.glyph not in known or any(_brings(f, t) for t in case.targets) for f in outside
    )
    kept = [any((f.glyph, f.tint) == (p.glyph, p.tint) for f in outside) for p in case.distractors]
    return Outcome(hits, internal if len(hits) > 1 else None, external, sum(kept) / len(kept) if kept else None)


def region_of(case: EditCase, sprite: Found) -> int | None:
    """The edited object's square that holds at least half of what was found; None: the background."""
    for i, place in enumerate(case.places):
        if _shared(sprite, place) * 2 >= SPAN * SPAN:
            return i
    return None


def _shared(sprite: Found, place: Placement) -> int:
    """Cells that two sprites share."""
    return max(0, SPAN - abs(sprite.x - place.x)) * max(0, SPAN - abs(sprite.y - place.y))


def _is(sprite: Found, target: Thing) -> bool:
    return sprite.glyph == target.glyph and target.tint in (None, sprite.tint)


def _brings(sprite: Found, target: Thing) -> bool:
    """Whether what was found has something that only this target brings."""
    return sprite.glyph == target.glyph or (target.tint is not None and sprite.tint == target.tint)

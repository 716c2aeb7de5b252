"""One run of a benchmark: what its parts share."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypedDict

from unleak.bench.rows import Row
from unleak.core.anatomy import Anatomy
from unleak.drawing.generate import generate
from unleak.errors import choose
from unleak.files.parts import Parts
from unleak.files.provenance import code_of
from unleak.judges.copies import scene_judge
from unleak.judges.glyphs import GlyphJudge, glyph_judge
from unleak.text.encode import fingerprint
from unleak.world import World
from unleak.world import load as load_world
from unleak.world.prompts import Case, check_split, prompts

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Asked(TypedDict, total=False):
    """What every suite of an embedded world is asked, beside its methods.

    split: of the world's prompts, "heldout" by default. seeds: 0 to 3 by default. limit: how many prompts of each kind
    at most. call: arguments of the pipeline. progress: is told (part, how many are done, of how many).
    """

    split: str
    seeds: Sequence[int]
    limit: int | None
    call: dict[str, Any] | None
    progress: Callable[[str, int, int], None] | None


@dataclass
class Run:
    """A pipeline, what it is asked to draw, and the folder `out` where finished parts lie.

    ``edition`` is the embedded world that the model draws; ``notes`` say what could not be measured and why, and are
    written beside the figures.
    """

    pipe: Any
    out: Path
    model: str
    split: str
    seeds: list[int]
    limit: int | None
    call: dict[str, Any]
    progress: Callable[[str, int, int], None] | None = None
    notes: list[str] = field(default_factory=list)
    edition: int = 1

    @classmethod
    def of(cls, pipe: Any, out: Path, model: str, edition: int = 1, **asked: Unpack[Asked]) -> Run:
        """The run that a suite was asked for."""
        return cls(
            pipe, out, model, asked.get("split", "heldout"), list(asked.get("seeds", range(4))), asked.get("limit"),
            dict(asked.get("call") or {}), asked.get("progress"), edition=edition,
        )  # fmt: skip

    @cached_property
    def world(self) -> World:
        return load_world(self.edition)

    @cached_property
    def judge(self) -> GlyphJudge:
        return glyph_judge(self.edition)

    @cached_property
    def weights(self) -> str:
        return fingerprint(Anatomy.of(self.pipe).denoiser)

    @cached_property
    def code(self) -> list[str]:
        """Hashes of the code that every part depends on."""
        suites = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py")))
        return [hashlib.sha256(suites).hexdigest()[:16], code_of(generate, glyph_judge, scene_judge)]

    def cases(self, kind: str, most: int) -> list[Case]:
        """Prompts of one kind, at most `most` and at most the limit."""
        return prompts(self.world, kind, self.split, min(self.limit or most, most))

    def part(self, name: str, inputs: Any, compute: Callable[[], Any], code: Iterable[Any] = ()) -> Any:
        """A finished part, or what `compute` returns.

        It is reused only for equal inputs, model, seeds and call, and the same code: that of the benchmarks, of drawing
        and judging, and of `code`, the modules or classes of the method that is measured.
        """
        settings = [self.model, self.weights, self.seeds, self.call, self.code, code_of(*code)]
        return Parts(self.out, self.notes.append).get(re.sub(r"[^\w-]", "_", name), [*settings, *inputs], compute)

    def ticking(self, name: str, total: int) -> Callable[[int], None]:
        """Counts up to `total` under this name; call it with how many were done."""
        done = 0

        def tick(n: int) -> None:
            nonlocal done
            done += n
            if self.progress:
                self.progress(name, done, total)

        return tick


def refuse_unknown(
    suite: str, known: Sequence[str], split: str, methods: Sequence[str] | None, edition: int = 1
) -> None:
    """Refuse a split, or a method that the suite does not have. Raises BadInput."""
    check_split(load_world(edition), split)
    for name in methods or ():
        choose(f"method of bench {suite}", name, known)


def measured(run: Run, parts: Sequence[ModuleType], methods: Sequence[str] | None) -> list[Row]:
    """Rows of every part for the chosen methods, by default those of its `DEFAULT`; a part without any is not run."""
    rows: list[Row] = []
    for part in parts:
        chosen = [name for name in part.METHODS if name in (part.DEFAULT if methods is None else methods)]
        if chosen:
            rows += part.rows(run, chosen)
    return rows

"""`unleak demo`: a prompt that leaks, which word leaked into which, and the repaired image, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unleak.cli.command import Command, command
from unleak.cli.console import show, ticking

PROMPT, WORD, LEAKER, NEUTRAL = "a key and a guitar", "key", "guitar", "a key and a banana"
ROWS: dict[str, dict[str, Any]] = {
    "only the word's own rows replaced": {"rows": ("item",)},
    "only EOS and pad rows replaced": {"rows": ("eos", "pads")},
    "all rows that have read both words replaced (the repair)": {},
}
"""Which rows of the text encoder are given back their meaning without context."""


@command("device", "seeds", "steps", "folder", seeds="0:8", folder=Path("demo"), files=("before*.png", "after*.png"))
def demo(cmd: Command) -> None:
    """A first look: a prompt that leaks on the embedded model, why, and the repaired image, on one page."""
    seeds, pipe = cmd.numbers, cmd.open()
    from unleak.drawing.images import generate
    from unleak.engine.session import attach
    from unleak.files.atomic import write_atomic
    from unleak.judges.glyphs import glyph_judge
    from unleak.report.repair import page
    from unleak.text.items import Item
    from unleak.words.methods.patch import Patch
    from unleak.words.repair.repair import repair

    judge, word = glyph_judge(), [Item(WORD)]
    (sense,) = judge.senses(word)
    evidence: list[dict[str, Any]] = []

    def add(title: str, note: str, images: Any) -> None:
        hits = judge.present(images, word)[:, 0]
        caption = note.format(count=f"{int(hits.sum())} of {len(hits)}", sense=sense)
        evidence.append({"title": title, "note": caption, "images": images})

    with ticking("drawing", (4 + len(ROWS)) * len(seeds)) as tick:
        drawing: dict[str, Any] = {"seeds": seeds, "call": cmd.call, "progress": tick}
        for text in (f"a {WORD}", NEUTRAL):
            images = generate(pipe, text, **drawing).images[0]
            add(f"“{text}”", f"Here the {WORD} is a {{sense}} on {{count}} seeds.", images)
        result = repair(pipe, PROMPT, [WORD, LEAKER], with_="patch", judge=judge, model=cmd.model, **drawing)
        for name, options in ROWS.items():
            with attach(pipe, Patch(WORD, as_=sense, others=LEAKER, **options)):
                images = generate(pipe, PROMPT, **drawing).images[0]
            note = f"With these rows taken from where no {LEAKER} is near, it is right on {{count}} seeds."
            add(f"Where the leak sits: {name}", note, images)
    cmd.show(result)
    write_atomic(cmd.folder / "index.html", page(result, evidence, "unleak demo"))
    show(cmd.folder / "index.html")

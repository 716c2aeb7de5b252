"""A prompt that leaks, which word leaked into which and why, and the repaired image: one page, no network.

    python examples/demo.py --out demo

Uses the embedded model `emoji-sd`, a real `StableDiffusionPipeline`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

import unleak
from unleak.drawing.generate import generate
from unleak.files.atomic import write_atomic
from unleak.judges.glyphs import glyph_judge
from unleak.models import load, settings
from unleak.report.repair import page
from unleak.text.items import Item
from unleak.words.repair.repair import repair

# which rows of the text encoder are given back their meaning without context
CHANNELS: dict[str, dict[str, Any]] = {
    "only the word's own rows replaced": {"rows": ("item",)},
    "only EOS and pad rows replaced": {"rows": ("eos", "pads")},
    "all rows that heard both words replaced (the repair)": {},
}


def rate(hits: np.ndarray) -> str:
    return f"{int(hits.sum())} of {len(hits)}"


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--prompt", default="a key and a guitar")
    ap.add_argument("--items", default="key,guitar", help="the leaking word first, then the word that it leaks from")
    ap.add_argument("--neutral", default="a key and a banana", help="the same prompt in harmless company")
    ap.add_argument("--seeds", type=int, default=8)
    ap.add_argument("--out", type=Path, default=Path("demo"))
    a = ap.parse_args()
    start, out, seeds = time.monotonic(), Console(), range(a.seeds)
    pipe, judge, call = load("emoji-sd"), glyph_judge(), settings("emoji-sd")
    word, leaker = [Item.of(a.items.split(",")[0])], a.items.split(",")[1]
    evidence: list[dict[str, Any]] = []

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("drawing", total=(4 + len(CHANNELS)) * a.seeds)
        tick = lambda n: bar.advance(task, n)  # noqa: E731
        for text in (f"a {word[0].text}", a.neutral):
            images = generate(pipe, text, seeds, progress=tick, **call)[0]
            hits = judge.present(images, word)[:, 0]
            note = f"Here the {word[0].text} is a {judge.senses(word)[0]} on {rate(hits)} seeds."
            evidence.append({"title": f"“{text}”", "note": note, "images": images})
        result = repair(
            pipe, a.prompt, a.items, with_="patch", seeds=seeds, judge=judge, model="emoji-sd", call=call, progress=tick
        )
        for name, options in CHANNELS.items():
            with unleak.attach(pipe, unleak.Patch(word[0].text, as_=judge.senses(word)[0], others=leaker, **options)):
                images = generate(pipe, a.prompt, seeds, progress=tick, **call)[0]
            hits = judge.present(images, word)[:, 0]
            note = f"With these rows taken from where no {leaker} is near, it is right on {rate(hits)} seeds."
            evidence.append({"title": f"Where the leak sits: {name}", "note": note, "images": images})

    result.save(f"{a.out}/")
    write_atomic(a.out / "index.html", page(result, evidence, "unleak demo"))
    out.print(f"prompt: [bold]{a.prompt}[/bold]")
    for i in result.items:
        assert i.before is not None and i.after is not None
        out.print(f"  {i.text} ({i.sense}): before {rate(i.before)}, after {rate(i.after)} seeds")
    out.print(f"{a.out / 'index.html'}  ({time.monotonic() - start:.0f} s)")


if __name__ == "__main__":
    main()

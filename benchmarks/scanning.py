"""Cost of looking for copies, as ratios in the same run, on the embedded model.

Throughput of `unleak.scan` in prompts a minute against drawing the same prompts with the plain pipeline, at the same
seeds; GUARD and its closed gate against plain guidance; memory of a scan of 1,000 and of 100,000 lines, where the
denoiser is left out, because its memory does not depend on the file.

    python benchmarks/scanning.py [--prompts 8] [--seeds 4] [--repeats 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from overhead import measure, summarise
from unleak import models
from unleak.copies.methods.guard import Guard
from unleak.copies.scan import scan as scanning
from unleak.copies.scan import scan_file as files
from unleak.copies.scan import scanner
from unleak.copies.scan.scan import plan, scan
from unleak.drawing.generate import generate
from unleak.engine.session import attach
from unleak.world import load as load_world


def peak(pipe: Any, lines: int, call: dict[str, Any]) -> float:
    """Peak MiB that Python allocates while a file of so many lines is scanned, a tenth of which cannot be used."""
    made = plan(pipe, seeds=2, batch=256, call=call)
    scores = {name: np.zeros((256, 2)) for name in made.names}

    def measured(_: Any, prompts: list[str], __: Any) -> dict[str, np.ndarray]:
        return {name: x[: len(prompts)] for name, x in scores.items()}

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(scanner, "measure", measured):
        path = Path(folder) / "prompts.txt"
        path.write_text("".join(f"a cat {i if i % 10 else ''}\n" for i in range(lines)))
        tracemalloc.start()
        files.scan_file(pipe, path, Path(folder) / "scan.jsonl", made)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return highest / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="these variants alone, and no memory", metavar="VARIANT")
    parser.add_argument("--lines", type=int, nargs=2, default=[1_000, 100_000])
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    options = parser.parse_args()
    pipe, call = models.load("emoji-sd"), models.settings("emoji-sd")
    texts, seeds = [c.text for c in load_world().ordinary[: options.prompts]], range(options.seeds)

    def drawn(*methods: Any) -> None:
        with attach(pipe, *methods):
            generate(pipe, texts, seeds, **call)

    def every_row() -> None:
        with mock.patch.object(scanning._OncePerSeed, "merges", ()):
            scan(pipe, texts, seeds, call=call)

    variants = {
        "plain": drawn,
        "scan": lambda: scan(pipe, texts, seeds, call=call),
        "scan, no rows merged": every_row,
        "guard": lambda: drawn(Guard()),
        "guard, gate closed": lambda: drawn(Guard(gate=math.inf)),
    }
    if options.only:
        variants = {name: variants[name] for name in options.only}
    rows = summarise(measure(variants, options.repeats, "cpu"), next(iter(variants)))
    print(f"| what | s | ratio to {next(iter(variants))} | prompts a minute |\n|---|---|---|---|")
    for name, row in rows.items():
        a_minute = 60 * len(texts) / row["seconds"]
        print(f"| {name} | {row['seconds']:.2f} | {row['seconds_ratio']:.3f} | {a_minute:.0f} |")
    if options.only:
        return
    memory = {lines: peak(pipe, lines, call) for lines in options.lines}
    print("\n| lines | peak MiB |\n|---|---|")
    for lines, size in memory.items():
        print(f"| {lines} | {size:.2f} |")
    if options.json:
        about = {"schema": "unleak/scanning/1", "prompts": len(texts), "seeds": len(seeds), "call": call}
        seconds = {name: row["seconds"] for name, row in rows.items()}
        options.json.write_text(json.dumps({**about, "seconds": seconds, "peak_mib": memory}, indent=2) + "\n")


if __name__ == "__main__":
    main()

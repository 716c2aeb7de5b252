"""Do files of any length take constant memory and linear time? As `scan` and `lint` read, and as they write.

    python benchmarks/files.py [--lines 10000 100000 1000000]

Every figure is of a process of its own (Linux): its peak memory, libraries included, and the seconds of the work alone.
The exponent is the slope of log(seconds) over log(lines) by least squares: 1 is linear. A file with one line of 10 MB
is read too: that line is refused by number and not held. Lines with items in brackets cost `lint` more.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

LONG = 10_000_000
BATCH = 1000


def scan_reader(path: Path) -> Callable[[], int]:
    from unleak.files.prompt_file import count_entries, read_prompts

    def read() -> int:
        count_entries(path)
        return sum(1 for _ in read_prompts(path))

    return read


def lint_reader(path: Path) -> Callable[[], int]:
    from unleak.files.prompt_file import format_of, opened
    from unleak.words.lint.prompt_file import read_prompts

    def read() -> int:
        form = format_of(path)
        with opened(str(path), form) as (stream, _):
            return sum(1 for _ in read_prompts(stream, form))

    return read


def writer(path: Path) -> Callable[[], int]:
    """Writes a stream of as many records as the file has lines, then opens it again as a run that goes on does."""
    from unleak.files.jsonl import Stream

    count = int(path.stem.partition("-")[2])
    header = {"schema": "unleak/scan/1"}
    out = path.with_name("stream.jsonl")

    def write() -> int:
        with Stream(out, header, BATCH, ascii=True) as stream:
            for start in range(0, count, BATCH):
                stream.write(*({"line": k, "prompt": f"a cat and {k} dogs"} for k in range(start, start + BATCH)))
        with Stream(out, header, BATCH, ascii=True) as stream:
            return sum(1 for _ in stream.records())

    return write


JOBS = {"read as scan does": scan_reader, "read as lint does": lint_reader, "write and resume": writer}


def make(folder: Path, lines: int, long: bool = False) -> Path:
    """A file of prompts, JSONL; with `long` its second line has 10 MB."""
    path = folder / f"{'long' if long else 'lines'}-{lines}.jsonl"
    with path.open("w") as file:
        for k in range(lines):
            prompt = "a cat " * (LONG // 6) if long and k == 1 else f"a mouse and {k} dogs"
            file.write(json.dumps({"prompt": prompt}) + "\n")
    return path


def measure(job: str, path: Path) -> dict[str, float]:
    """Seconds, entries and peak memory in MiB of a job in its own process."""
    done = subprocess.run([sys.executable, __file__, "--job", job, "--file", str(path)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def work(job: str, path: Path) -> None:
    run = JOBS[job](path)
    began = time.perf_counter()
    count = run()
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's memory, too
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
    print(json.dumps({"count": count, "seconds": seconds, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        work(given.job, given.file)
        return
    print("| job | lines | seconds | peak, MiB | exponent |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for job in JOBS:
            times = []
            for lines in given.lines:
                path = make(folder, lines)
                figures = measure(job, path)
                times.append(figures["seconds"])
                several = len(times) == len(given.lines) > 1
                slope = f"{np.polyfit(np.log(given.lines), np.log(times), 1)[0]:.2f}" if several else ""
                print(f"| {job} | {lines} | {times[-1]:.2f} | {figures['peak']:.0f} | {slope} |", flush=True)
                for written in folder.iterdir():
                    written.unlink()
            if job != "write and resume":
                figures = measure(job, make(folder, 3, long=True))
                print(f"| {job} | 3, one of 10 MB | {figures['seconds']:.2f} | {figures['peak']:.0f} | |", flush=True)


if __name__ == "__main__":
    main()

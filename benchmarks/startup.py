"""Process CPU time of short commands on an embedded model, beside what the libraries alone take to open it.

Each run is a process of its own; the runs are interleaved; medians and the range of the runs are printed.

    python benchmarks/startup.py [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

END = "\nimport time; print('CPU', time.process_time())"
TORCH = "import torch" + END
OPEN = "from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained({folder!r})" + END
COMMAND = """
import sys, time
from unleak.cli import app
try:
    app({command!r})
except SystemExit as stop:
    assert not stop.code
print("CPU", time.process_time())
"""


def cpu_seconds(code: str) -> float:
    """Of a new process that runs `code` in an empty folder, from its start to its last line."""
    with tempfile.TemporaryDirectory() as empty:
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=empty)
    return float(done.stdout.rsplit("CPU", 1)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from unleak.models import embedded_folder

    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.txt"
        prompts.write_text("a [mouse] and a [laptop]\n")
        variants = {
            "import torch": TORCH,
            "diffusers opens emoji-sd": OPEN.format(folder=str(embedded_folder("emoji-sd"))),
            "unleak lint": COMMAND.format(command=["lint", str(prompts)]),
            "unleak scan": COMMAND.format(command=["scan", str(prompts)]),
            "unleak doctor": COMMAND.format(command=["doctor"]),
        }
        times: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(args.repeats):
            for name, code in variants.items():
                times[name].append(cpu_seconds(code))
    for name, each in times.items():
        print(f"{name:28s} {statistics.median(each):6.2f} s CPU ({min(each):.2f} to {max(each):.2f})")
    if args.json:
        args.json.write_text(json.dumps({"schema": "unleak/startup/1", "cpu_seconds": times}, indent=1) + "\n")


if __name__ == "__main__":
    main()

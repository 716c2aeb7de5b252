"""Are the figures what they were? Redraws a sample of every row of the committed tables and compares to the last digit.

    python benchmarks/same.py [--table words,regions] [--methods patch,cutoff]      the sample
    python benchmarks/same.py --committed [--table ...]                             whole rows of docs/results
    python benchmarks/same.py --record [--table ...]                                write the sample's figures anew

The sample is every method of every `docs/results/*/results.json`, on both embedded models, on the first prompts or
cases of each kind. `same.json` beside this file holds what it gave when it was recorded: the value and number of
each figure, a hash of the outcomes of all cases, and a hash of all pictures that were decoded, bit by bit. Times are
not compared, and neither are intervals, which follow from the values. `--committed` draws whole rows that are cheap
and compares their values with the committed tables.

The last bits of a sum depend on the processor, on torch's version and on the number of threads. The sample is drawn
with one thread, and `same.json` says on what it was recorded: elsewhere hashes may differ where the figures do not.
Exit status 1: a figure differs, or a hash on a machine like the recording one. All takes about half an hour of one
core; regions 8 minutes, copies/mitigation 5, words 4, world less than one. A method not in `same.json` is "new".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, FILE = HERE.parent / "docs" / "results", HERE / "same.json"
Figures = dict[str, list[Any]]  #: "method | subset | metric" -> [value, n]
#: figures that another run need not give
TIMES = ("seconds_ratio", "lint_prompts_per_minute")
#: what is left out of outcomes: times, and intervals, which a calibration keeps with its threshold
NOT_COMPARED = ("seconds", "seconds_ratio", "low", "high", "intervals", "compared")
WORLD = "single,pair,triple,colour,expression,neutral,trigger,memorized"
#: table -> options of the sample, which replace those of the committed command
SAMPLE: dict[str, tuple[str, ...]] = {
    "world": ("--limit", "2", "--seeds", "0:2"),
    "world-flux": ("--limit", "2", "--seeds", "0:2"),
    "words": ("--limit", "1", "--seeds", "0:1"),
    "words-flux": ("--limit", "1", "--seeds", "0:1"),
    "words-lint": ("--limit", "4", "--seeds", "0:1"),
    "words-flux-lint": ("--limit", "4", "--seeds", "0:1"),
    "copies": ("--limit", "1", "--seeds", "0:2"),
    "copies/mitigation": ("--limit", "1", "--seeds", "110:112"),
    "regions": ("--limit", "1", "--steps", "4"),
    "regions-own": ("--limit", "1", "--steps", "4"),
    "regions-attention": ("--limit", "1", "--steps", "4"),
    "regions-null-text": ("--limit", "1", "--steps", "2"),
}
#: methods that need more than the sample's options
MORE: dict[str, tuple[str, ...]] = {
    "classifier": ("--limit", "5", "--steps", "2"), "diagnosis": ("--limit", "2", "--seeds", "0:2", "--steps", "8"),
    "lint": ("--limit", "4", "--seeds", "0:1"), "flow": ("--limit", "8",),
    "bright-ending": ("--limit", "1", "--steps", "8"), "late-entropy": ("--limit", "1", "--steps", "8"),
}  # fmt: skip
#: whole rows that cost no more than a few minutes: table -> methods
COMMITTED: dict[str, tuple[str, ...]] = {
    "world": ("triple,memorized",),
    "world-flux": ("triple,memorized",),
    "words": ("flow",),
    "words-flux": ("flow",),
    "words-lint": ("lint",),
    "words-flux-lint": ("lint",),
    "copies": ("magnitude", "agreement", "collapse", "entropy", "site-entropy"),
    "regions": ("source",),
}


def command_of(table: str) -> tuple[list[str], list[str]]:
    """The arguments that a committed table was made with, without its folder and methods; and the methods.

    What the others are compared with comes first.
    """
    words = shlex.split(json.loads((RESULTS / table / "results.json").read_text("utf-8"))["command"])[1:]
    kept: list[str] = []
    methods = [WORLD]
    while words:
        word = words.pop(0)
        if word == "--methods":
            methods = words.pop(0).split(",")
        elif word == "-o":
            words.pop(0)
        else:
            kept.append(word)
    first = [name for name in ("source", "ale") if kept[1] == "regions"]
    return kept, [*first, *(name for name in methods if name not in first)]


def with_options(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments with some options replaced."""
    names = options[::2]
    kept = [a for i, a in enumerate(arguments) if a not in names and (i == 0 or arguments[i - 1] not in names)]
    return [*kept, *options]


@contextmanager
def hashing() -> Iterator[list[str]]:
    """Collects a hash of every picture that an autoencoder decodes inside the block."""
    from diffusers import AutoencoderKL

    hashes: list[str] = []
    original = AutoencoderKL.decode

    def decode(self: Any, *args: Any, **kwargs: Any) -> Any:
        decoded = original(self, *args, **kwargs)
        for image in decoded[0]:
            hashes.append(hashlib.sha256(image.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest())
        return decoded

    AutoencoderKL.decode = decode  # type: ignore[method-assign]
    try:
        yield hashes
    finally:
        AutoencoderKL.decode = original  # type: ignore[method-assign]


def measured(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run a command: its figures, and hashes of the outcomes of each case and of all pictures ("": there are none)."""
    from unleak.cli import app

    before = outcomes(folder)
    with hashing() as hashes, redirect_stdout(StringIO()):
        app([*arguments, "-o", str(folder)], standalone_mode=False)
    after = outcomes(folder)
    new = sorted(after[file] for file in after if after[file] != before.get(file))
    rows = json.loads((folder / "results.json").read_text("utf-8"))["rows"]
    found = {
        f"{r['method']} | {r['subset']} | {r['metric']}": [r["value"], r["n"]] for r in rows if r["metric"] not in TIMES
    }
    return {
        "figures": found,
        "outcomes": digest(new) if new else "",
        "pictures": digest(sorted(hashes)) if hashes else "",
    }


def outcomes(folder: Path) -> dict[str, str]:
    """A hash of every finished part of a run, without times and intervals."""
    files = sorted(folder.rglob("parts/*.json"))
    return {str(file): digest(_scrubbed(json.loads(file.read_text("utf-8"))["value"])) for file in files}


def _scrubbed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _scrubbed(v) for k, v in value.items() if k not in NOT_COMPARED}
    if isinstance(value, list):
        return [_scrubbed(v) for v in value if not (isinstance(v, dict) and v.get("metric") in TIMES)]
    return value


def digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def sample(table: str, chosen: Sequence[str] | None, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method of a table, or the chosen ones, on few prompts: what is kept of it in `same.json`.

    Of edits, which have 200 figures each, those of all cases and of senses are kept, and a hash of the others.
    """
    arguments, methods = command_of(table)
    seen: set[str] = set()
    for method in methods:
        base = method in ("none", "source", "ale")  # others are measured beside it: it runs first, and once
        if chosen is not None and method not in chosen and not base:
            continue
        more = MORE.get(method, ())
        options = with_options(with_options(arguments, SAMPLE[table]), more)
        asked = f"ale,{method}" if arguments[1] == "regions" and method != "source" else method
        try:
            found = measured([*options, "--methods", asked], folder / table / (method if more else "alike"))
        except (Exception, SystemExit) as e:  # the other methods are looked at all the same
            yield method, {"failed": repr(e)}
            continue
        new = {key: value for key, value in found["figures"].items() if key not in seen}
        seen |= new.keys() if base else set()
        kept = {k: v for k, v in new.items() if arguments[1] != "regions" or k.split(" | ")[1] in ("all", "sense")}
        others = {k: v for k, v in new.items() if k not in kept}
        yield method, {**found, "figures": kept, "others": digest(others) if others else ""}


def committed(table: str, chosen: Sequence[str] | None, folder: Path) -> Iterator[tuple[str, Figures, Figures]]:
    """(method, committed figures, figures of now) of whole rows."""
    rows = json.loads((RESULTS / table / "results.json").read_text("utf-8"))["rows"]
    was = {f"{r['method']} | {r['subset']} | {r['metric']}": [r["value"], r["n"]] for r in rows}
    arguments, _ = command_of(table)
    for method in COMMITTED.get(table, ()):
        if chosen is None or method in chosen:
            now = measured([*arguments, "--methods", method], folder / table)["figures"]
            yield method, {key: was.get(key, []) for key in now}, now


def machine() -> dict[str, Any]:
    """What a last bit depends on."""
    import torch

    from unleak.files.provenance import processor

    return {"processor": processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def compared(table: str, method: str, was: dict[str, Any], now: dict[str, Any], alike: bool) -> bool:
    """Print what became of a method; False where a figure differs, or on a machine like the recording one a hash."""
    if "failed" in now:
        print("fails  ", table, method, now["failed"], flush=True)
        return False
    wrong = differences(was["figures"], now["figures"])
    if was["others"] != now["others"]:
        wrong.append("figures of single kinds")
    bits = [name for name in ("outcomes", "pictures") if was[name] != now[name]]
    bad = bool(wrong) or (alike and bool(bits))
    exact = [name for name in ("outcomes", "pictures") if now[name] and name not in bits]
    about = ", ".join([f"{len(now['figures'])} figures", *exact, *(f"other {name}" for name in bits)])
    print("differs" if bad else "same   ", table, method, f"({about})", flush=True)
    for line in wrong:
        print("   ", line, flush=True)
    return not bad


def differences(was: Figures, now: Figures) -> list[str]:
    """A line for each figure that is not what it was."""
    return [f"{key}: {was.get(key)} -> {now.get(key)}" for key in {**was, **now} if was.get(key) != now.get(key)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default=",".join(SAMPLE), help="folders of docs/results, comma separated")
    parser.add_argument("--methods", help="only these, comma separated")
    parser.add_argument("--committed", action="store_true", help="whole rows, against the committed tables")
    parser.add_argument("--record", action="store_true", help="write what the sample gives now to same.json")
    options = parser.parse_args()
    tables, methods = options.table.split(","), options.methods and options.methods.split(",")
    if unknown := set(tables) - set(SAMPLE):
        parser.error(f"no table is called {', '.join(unknown)}; choose from {', '.join(SAMPLE)}")
    import torch

    torch.set_num_threads(1)
    look = check_committed if options.committed else record if options.record else check_sample
    fine = True
    for table in tables:
        start = time.process_time()
        with tempfile.TemporaryDirectory() as temporary:
            fine &= look(table, methods, Path(temporary))
        print(f"{table}: {time.process_time() - start:.0f} s", file=sys.stderr, flush=True)
    return 0 if fine else 1


def check_committed(table: str, chosen: Sequence[str] | None, folder: Path) -> bool:
    """Print what became of whole rows of a table; False where one differs."""
    fine = True
    for method, was, now in committed(table, chosen, folder):
        wrong = differences(was, now)
        print("differs" if wrong else "same   ", table, method, f"({len(now)} committed figures)", flush=True)
        for line in wrong:
            print("   ", line, flush=True)
        fine &= not wrong
    return fine


def check_sample(table: str, chosen: Sequence[str] | None, folder: Path) -> bool:
    """Print what became of the sample of a table; False where a method differs or fails."""
    kept, fine = recorded(), True
    alike, was = kept["machine"] == machine(), kept["tables"].get(table, {})
    for method, now in sample(table, chosen, folder):
        if method in was or "failed" in now:
            fine &= compared(table, method, was.get(method, {}), now, alike)
        else:
            print("new    ", table, method, "(not recorded)", flush=True)
    return fine


def record(table: str, chosen: Sequence[str] | None, folder: Path) -> bool:
    """Write what the sample of a table gives; False where a method fails, which then keeps its old record."""
    fine = True
    for method, now in sample(table, chosen, folder):
        if "failed" in now:
            fine &= compared(table, method, {}, now, True)
            continue
        kept = recorded() | {"machine": machine()}
        kept["tables"].setdefault(table, {})[method] = now
        write(kept)
        print("recorded", table, method, flush=True)
    return fine


def recorded() -> dict[str, Any]:
    """What `same.json` holds."""
    kept: dict[str, Any] = json.loads(FILE.read_text("utf-8")) if FILE.is_file() else {"machine": {}, "tables": {}}
    return kept


def write(kept: dict[str, Any]) -> None:
    """One line for each method, so that a difference can be read."""
    lines = [f'{{"machine": {json.dumps(kept["machine"])},', '"tables": {']
    for i, (table, methods) in enumerate(kept["tables"].items()):
        lines.append(f"{json.dumps(table)}: {{")
        lines.append(",\n".join(f"{json.dumps(method)}: {json.dumps(one)}" for method, one in methods.items()))
        lines.append("}," if i + 1 < len(kept["tables"]) else "}")
    FILE.write_text("\n".join([*lines, "}}"]) + "\n", "utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    sys.exit(main())

"""What every fuzz test needs: how many examples, a folder of inputs, the command line in this process.

`make test` runs a few examples that are the same each time; `make fuzz` about `UNLEAK_FUZZ` of them in all, at random.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import typer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from tiny import tiny
from unleak import models
from unleak.bench.results import Results
from unleak.bench.rows import Row
from unleak.cli import app
from unleak.copies.scan.calibrate import Calibration, fingerprint_of
from unleak.errors import UnsupportedModel
from unleak.text.encode import weights_digest
from unleak.words.lint.calibration import RiskCalibration
from unleak.words.tokens.classifier import Classifier

TOTAL = int(os.environ.get("UNLEAK_FUZZ", "0"))
"""Examples of all properties together; 0: the few of `make test`."""
STATUSES = {0, 1, 2, 3, 4, 130}
MODEL = "model"
CALL = {"height": 64, "width": 64, "num_inference_steps": 1}


def examples(few: int, share: float) -> settings:
    """`few` examples that are always the same, or this share of `TOTAL`."""
    return settings(
        max_examples=max(1, round(TOTAL * share)) if TOTAL else few, derandomize=not TOTAL, print_blob=True,
        database=None, deadline=None, suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# -- the command line ------------------------------------------------------------------------------------------


def commands(command: Any = None, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of the command line by its words, so that a new one is fuzzed without a new line here."""
    command = typer.main.get_command(app) if command is None else command
    if hasattr(command, "commands"):
        for word, inner in command.commands.items():
            yield from commands(inner, (*name, word))
    else:
        yield name, command


COMMANDS = dict(commands())
OUTPUTS = {"out", "folder", "json", "html", "fit"}
"""Parameters that name what a command writes."""
LONG = {"bench", "demo"}
"""Commands that end where they would load a model, since they draw for minutes."""


def run(*args: str, stdin: bytes = b"") -> SimpleNamespace:
    """The command line in this process: `code`, `out` and `err`. Asserts what holds of every run."""
    done = CliRunner().invoke(app, list(args), input=stdin, catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(f"a traceback of {args}") from done.exception
    assert done.exit_code in STATUSES, (args, done.exit_code, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout, (args, done.stderr)
    assert "\x1b" not in done.stderr, (args, done.stderr)
    return SimpleNamespace(code=done.exit_code, out=done.stdout, err=done.stderr)


@cache
def pipe(name: str = "sd1") -> Any:
    return tiny(name)


@contextmanager
def tiny_models(draws: bool) -> Iterator[None]:
    """The model called "model" is a tiny pipeline, if anything may be drawn. No other loads, and no hub is asked."""
    load, check_hub = models.load, models.check_hub

    def loaded(model: Any = "emoji-sd", *_: Any, **options: Any) -> Any:
        models.find_device(options.get("device"))
        models.find_dtype(options.get("dtype"))
        if not draws or str(model) != MODEL:
            models._locate(model)
            raise UnsupportedModel("no model is loaded here")
        return pipe()

    def unreachable(name: str, *_: Any) -> None:
        raise UnsupportedModel(f"no hub here for {name!r}")

    models.load, models.check_hub = loaded, unreachable  # type: ignore[assignment]
    try:
        yield
    finally:
        models.load, models.check_hub = load, check_hub


@contextmanager
def fuzz_folder() -> Iterator[Path]:
    """A new folder with `inputs`, which is the current one inside the block."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as made:
        fill(Path(made))
        os.chdir(made)
        try:
            yield Path(made)
        finally:
            os.chdir(before)


# -- folders ---------------------------------------------------------------------------------------------------


@cache
def inputs() -> Mapping[str, bytes]:
    """Files of every kind that a command reads, by name."""
    sd1 = pipe()
    figure = [0.9, 0.8, 1.0]
    calibration = Calibration(
        "tiny", fingerprint_of(sd1), "magnitude", 0.5, 0.01, 1, 2, CALL, 0.99, 0.9, {"auroc": (0.9, 1.0)}, 9, 9,
        {}, 0.0, {"magnitude": {"auroc": figure, "tpr_at_1fpr": figure, "threshold": 0.5}},
    )  # fmt: skip
    risk = RiskCalibration(2.0, -1.0, {"text_encoder": weights_digest(sd1.text_encoder)}, 40, 20, "a test")
    arrays = {"weight": np.ones(33, np.float32), "bias": np.zeros(1, np.float32)}
    classifier = Classifier("linear", 1.0, 0.5, "text_encoder", {"text_encoder": "x"}, arrays)
    row = Row("none", "all", "leak_rate", 0.5, 0.4, 0.6, 10)
    table = Results("words", "emoji-sd", [0], "dev", {"name": "glyphs"}, [row], command="unleak bench").to_dict()
    lines = ["a [mouse] and a [laptop]", "a red cat", "", "a dog and a zebra"]
    records = [{"prompt": "a mouse and a laptop", "items": ["mouse", "laptop"]}, {"prompt": "a red cat"}]
    json_lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    plain = "\n".join(lines).encode()
    return {
        "p.txt": plain, "others.txt": b"a bus\na horse\na bat\n", "crlf.txt": plain.replace(b"\n", b"\r\n"),
        "utf16.txt": "\n".join(lines).encode("utf-16"), "p.jsonl": json_lines, "p.json": json.dumps(records).encode(),
        "p.csv": b"prompt,items\na mouse and a laptop,mouse\n", "p.tsv": b"caption\tx\na red cat\t1\n",
        "empty.txt": b"",
        "binary": bytes(range(256)), "nested.json": b"[" * 20_000, "cal.json": calibration.to_json().encode(),
        "nan.json": calibration.to_json().replace('"threshold": 0.5', '"threshold": NaN').encode(),
        "risk.json": risk.to_json().encode(), "classifier": classifier.to_bytes(),
        "results.json": json.dumps(table).encode(), "photo.png": picture("RGB"), "mask.png": picture("L"),
        "cut.png": picture("RGB")[:60], "escapes.txt": b"a \x1b[31mred\x1b[0m cat\n",
    }  # fmt: skip


def picture(mode: str) -> bytes:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:48, 16:48] = 255
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def fill(folder: Path) -> None:
    """Write `inputs` into a folder, with a folder and links beside them, and what the tiny model recommends."""
    for name, data in inputs().items():
        (folder / name).write_bytes(data)
    (folder / "dir").mkdir()
    (folder / "link").symlink_to("p.txt")
    (folder / "nowhere").symlink_to("gone")
    (folder / MODEL).mkdir()
    (folder / MODEL / "unleak.json").write_text(json.dumps({"call": CALL}))


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, however deep: a file's bytes, a link's target, a mark for what is neither."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name, kind = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISLNK(kind):
            found[name] = b"link to " + os.fsencode(path.readlink())
        elif stat.S_ISREG(kind):
            found[name] = path.read_bytes()
        else:
            found[name] = b"folder" if stat.S_ISDIR(kind) else b"other"
    return found


def nothing_half(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> None:
    """No part of a file, no lock, was left."""
    left = [name for name in after.keys() - before.keys() if name.endswith((".part", ".lock", ".tmp"))]
    assert not left, left


# -- values ----------------------------------------------------------------------------------------------------

TEXTS = [
    "a mouse and a laptop", "a [mouse] and a [laptop]", "a red cat", "mouse,laptop", "mouse=furry mouse|computer mouse",
    "mouse#2", "mouse#" + "9" * 5000, "mouse,laptop,", "[mouse:laptop:0.5]", "", " ", "0", "1", "2", "-1", "0:2", "0:0",
    "1,1", "2**64", str(2**64), "1e400", "nan", "inf", "NaN", "0.5", "all", "threshold", "64", "64x64", "32", "8x", "x",
    "cpu", "cuda", "fp32", "bf16", "none", "magnitude", "entropy", "agreement", "patch", "detour", "guard", "ale",
    "tau=0.1", "tau=nan", "tau", "=", "=1", "text", "jsonl", "csv", "prompt", "heldout", "dev", "zero", "mean", "auto",
    "mouse=cat", "laptop=car@mask.png", "mouse=cat@gone.png", "glyphs", "emoji-sd", "emoji-flux", "model", "o/n",
    "\udcff", "é", "\x00", "a\nb", "\x1b[31mred", "a" * 5000, "-", "--", "words", "repair",
]  # fmt: skip
"""Values that some option understands, or that a person may type by mistake."""
USUAL = {
    "prompt": ["a mouse and a laptop", "a red cat"], "items": ["mouse,laptop", "mouse"], "seeds": ["0:2", "7"],
    "file": ["p.txt", "p.jsonl", "p.csv"], "first_steps": ["1", "all"], "calibration": ["cal.json", "risk.json"],
    "image": ["photo.png"], "edit": ["mouse=cat@mask.png"], "memorized": ["p.txt"], "ordinary": ["others.txt"],
    "gate": ["cal.json"], "model": [MODEL], "steps": ["1"], "size": ["64"], "redundancy": ["classifier"],
}  # fmt: skip
"""By the name of a parameter, what it is mostly for, so that some examples come far; others go by their type."""
text = st.one_of(st.sampled_from(TEXTS), st.text(max_size=12).filter(lambda t: not t.strip().isdigit()))
inside = st.text(max_size=8).filter(lambda t: not t.startswith(("/", "~")) and ".." not in t and "\x00" not in t)
"""A path that does not leave the folder."""
reads = st.one_of(st.sampled_from([*inputs(), "dir", "link", "nowhere", "gone", "/dev/null", "model", "."]), inside)
writes = st.one_of(
    st.sampled_from(["new.json", "new.html", "new.jsonl", "new", "dir/new.json", "gone/new.json", "-", "", "dir", "."]),
    reads.filter(lambda name: not name.startswith("/dev")), inside,
)  # fmt: skip
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def mutated(draw: Callable[..., Any], data: Any) -> Any:
    """JSON data with one value of it exchanged, left out or added to, at any depth."""
    data = json.loads(json.dumps(data))
    holder, key = data, None
    while isinstance(holder, dict | list) and holder:
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if not isinstance(holder[key], dict | list) or not holder[key] or draw(st.booleans()):
            break
        holder = holder[key]
    what = draw(st.sampled_from(["exchange", "exchange", "leave out", "add"]))
    if what == "leave out":
        del holder[key]
    elif what == "add" and isinstance(holder, dict):
        holder[draw(st.text(max_size=6))] = draw(json_values)
    else:
        holder[key] = draw(json_values)
    return data


@st.composite
def damaged(draw: Callable[..., Any], data: bytes) -> bytes:
    """Bytes that were cut, or of which some were exchanged, taken out or put in."""
    where = draw(st.integers(0, len(data)))
    noise = draw(st.binary(max_size=6))
    kind = draw(st.sampled_from(["cut", "exchange", "put in", "take out"]))
    rest = {"cut": len(data), "exchange": where + len(noise), "put in": where}.get(kind, where + 1 + len(noise))
    return data[:where] + (b"" if kind in ("cut", "take out") else noise) + data[rest:]


def plain(value: Any) -> Any:
    """A result as JSON, so that NaN and odd types show."""
    data = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    return json.loads(json.dumps(data, allow_nan=False, default=str))

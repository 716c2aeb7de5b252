"""Every format of a file, in any encoding, whole or damaged: a typed error, or entries in order; the file as it was."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import MODEL, contents, damaged, examples, fuzz_folder, json_values, nothing_half, run, tiny_models
from hypothesis import given
from hypothesis import strategies as st

from unleak.errors import UnleakError
from unleak.files import prompt_file

ENDINGS = (".txt", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".gz", "", ".TXT")
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "latin-1")
words = st.sampled_from(
    ["a mouse and a laptop", "a [mouse] and a [laptop]", "", " ", "a mouse, [laptop], a key", "[mouse:laptop:0.5]",
     "[mouse|laptop]", "mouse#" + "9" * 5000, "\x1b[2J", "\x00", "é", "x" * 3000, "[" * 3000, "a\u2028b", "\ufeff",
     '"', "a,b"]
) | st.text(max_size=20)  # fmt: skip
prompts = st.fixed_dictionaries(
    {"prompt": words | json_values},
    optional={"items": st.lists(words, max_size=3) | json_values, "sense": json_values, "leaks": json_values},
)


@st.composite
def files(draw: Callable[..., Any]) -> tuple[str, bytes]:
    """(ending, bytes): of a format that the ending may or may not be of."""
    kind, end = (
        draw(st.sampled_from(["text", "jsonl", "json", "csv", "tsv", "bytes"])),
        draw(st.sampled_from(["\n", "\r\n", "\r"])),
    )
    if kind == "bytes":
        return draw(st.sampled_from(ENDINGS)), draw(st.binary(max_size=80))
    if kind == "text":
        text = end.join(draw(st.lists(words, max_size=5)))
    elif kind == "jsonl":
        text = end.join(json.dumps(x) for x in draw(st.lists(prompts | words | json_values, max_size=5)))
    elif kind == "json":
        text = json.dumps(draw(st.lists(prompts | words, max_size=4) | json_values | st.just({"prompts": ["a cat"]})))
    else:
        stream = io.StringIO()
        table = csv.writer(stream, delimiter="\t" if kind == "tsv" else draw(st.sampled_from(",;")), lineterminator=end)
        table.writerow(draw(st.sampled_from([["prompt"], ["x", "caption"], ["a", "b"], ["Prompt", "items"], []])))
        table.writerows(draw(st.lists(st.lists(words, max_size=3), max_size=4)))
        text = stream.getvalue()
    data = text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
    if draw(st.integers(0, 3)) == 0:
        data = draw(damaged(data))
    ending = draw(st.sampled_from([{"text": ".txt"}.get(kind, f".{kind}")] * 3 + list(ENDINGS)))
    return ending, data


@examples(60, 0.1)
@given(files(), st.sampled_from([None, None, "prompt", "items", "gone"]))
def test_a_file_is_read_to_its_end_or_refused(file: tuple[str, bytes], column: str | None) -> None:
    ending, data = file
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / f"p{ending}"
        path.write_bytes(data)
        try:
            entries = list(prompt_file.read_prompts(path, column))
        except UnleakError:
            entries = []
        numbers = [entry.number for entry in entries]
        assert numbers == sorted(set(numbers))
        for entry in entries:
            assert isinstance(entry.text, str) and (entry.error is None or entry.error)
            assert entry.error is not None or (entry.text.strip() and entry.text.encode())
        assert path.read_bytes() == data


@examples(5, 0.03)
@given(files(), st.sampled_from([("lint",), ("calibrate", "--ordinary", "others.txt", "--memorized"), ("scan",),
                                 ("bench", "words", "--prompts"), ("redundancy",), ("report",)]))  # fmt: skip
def test_a_command_that_reads_a_file_ends_as_documented(file: tuple[str, bytes], words: tuple[str, ...]) -> None:
    ending, data = file
    with fuzz_folder() as folder, tiny_models(draws=words[0] in ("lint", "scan", "report")):
        (folder / f"x{ending}").write_bytes(data)
        before = contents(folder)
        run(*words, f"x{ending}", *(() if words == ("report",) else ("-m", MODEL)))
        after = contents(folder)
        nothing_half(before, after)
        assert {name: after.get(name) for name in before} == before

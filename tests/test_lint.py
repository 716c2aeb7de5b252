"""Lint: what shifts an item's rows, what a risk is, and files that are read line by line and written to the end."""

from __future__ import annotations

import io
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiny import NAMES, save_tiny, tiny
from unleak import models
from unleak.copies.scan.calibrate import Calibration
from unleak.errors import BadInput, BrokenFile, UnsupportedModel
from unleak.files.jsonl import Stream, encode
from unleak.files.prompt_file import LONGEST, format_of
from unleak.report import lint as report
from unleak.text.encoder_calls import encoder_calls
from unleak.words.lint import lint_file
from unleak.words.lint.calibration import RiskCalibration, fit, shipped
from unleak.words.lint.lint import CHUNK, ItemLint, Linter, PromptLint, calibrate
from unleak.words.lint.lint_file import lint
from unleak.words.lint.neutral import NEUTRAL, ReferenceStatistics
from unleak.words.lint.prompt_file import line, read_prompts
from unleak.words.lint.shift import (
    REST,
    SentenceEncoder,
    SentenceRows,
    Shift,
    sense_position,
    shifts,
    towards,
    variants,
)

PROMPT, FOUND = "a mouse and a laptop by a zebra", ((2, 7), (14, 20), (26, 31))


# -- how a pipeline reads its encoders ---------------------------------------------------------------------


def test_listening_finds_the_rows_that_the_denoiser_gets(any_pipe):
    calls = encoder_calls(any_pipe, "a red mouse")
    for one in calls:
        rows = one.layer(one.call.output)
        assert rows.ndim == 3 and rows.shape[:2] == one.call.ids.shape
        assert not one.call.module._forward_hooks
    if hasattr(any_pipe, "text_encoder_3"):
        assert [h.call.name for h in calls] == ["text_encoder", "text_encoder_2", "text_encoder_3"]


def test_an_encoder_of_which_only_the_pooled_vector_is_used_is_left_out(flux):
    assert [h.call.name for h in encoder_calls(flux)] == ["text_encoder_2"]


def test_the_rows_are_as_long_as_the_pipeline_will_be_called_with(flux):
    (read,) = encoder_calls(flux, max_sequence_length=24, num_inference_steps=4)
    assert read.call.length == 24
    (linter,) = Linter(flux, max_sequence_length=24).encoders.values()
    assert linter.length == 24


def test_listening_needs_text_encoders():
    with pytest.raises(UnsupportedModel, match="no text encoder"):
        encoder_calls(object())


@pytest.mark.parametrize("name", NAMES)
def test_the_text_side_alone_is_enough(name, tmp_path):
    pipe = models.load(save_tiny(name, tmp_path), text_only=True)
    assert getattr(pipe, "unet", None) is None and getattr(pipe, "transformer", None) is None and pipe.vae is None
    whole = {h.call.name: h.layer(h.call.output) for h in encoder_calls(tiny(name))}
    for one in encoder_calls(pipe):
        assert torch.equal(one.layer(one.call.output), whole[one.call.name])


# -- shifts ------------------------------------------------------------------------------------------------


def read_variants(encoder, prompt=PROMPT, found=FOUND):
    made = variants(prompt, found)
    return dict(zip(made, encoder.read([encoder.cut(s) for s in made.values()]), strict=True))


def test_fewer_columns_give_the_same_rows(any_pipe):
    """A causal encoder is given the text, EOS and one pad; its rows are those of the full length."""
    for read in encoder_calls(any_pipe, PROMPT):
        encoder = SentenceEncoder(read)
        cut = encoder.cut(variants(PROMPT, FOUND)[frozenset()])
        H = read.layer(read.call.output)[0]
        (reading,) = encoder.read([cut])
        for i, (a, b) in cut.spans.items():
            torch.testing.assert_close(reading.rows[i], H[b - 1] if encoder.causal else H[a:b].mean(0))
        if encoder.causal:
            eos = cut.tokens.after_text.start
            torch.testing.assert_close(reading.after, H[eos : eos + 2].flatten())


def test_context_to_the_right_of_a_causal_item_shifts_only_the_rows_after_the_text(any_pipe):
    for encoder in map(SentenceEncoder, encoder_calls(any_pipe)):
        readings = read_variants(encoder)
        later = shifts(readings, 0, 1)
        if encoder.causal:
            assert abs(later["own"].size) < 1e-5 and later["after"].size > 0.01
            assert shifts(readings, 1, 0)["own"].size > 0.01
        else:
            assert set(later) == {"own"} and later["own"].size > 0.01


def test_rows_that_add_up_do_not_shift():
    """When every item adds its own vector, whatever the company, nothing leaks; a lost meaning is a loss of 1."""
    torch.manual_seed(0)
    row, effect = torch.randn(3, 8), torch.randn(3, 16)

    def reading(gone, replaced=()):
        rows = {i: torch.zeros(8) if i in gone else row[i] for i in range(3)}
        after = sum(effect[i] for i in range(3) if i not in gone)
        return SentenceRows(rows, after + torch.zeros(16))

    readings = {gone: reading(gone) for gone in variants(PROMPT, FOUND)}
    for a, b in itertools.permutations(range(3), 2):
        for change in shifts(readings, a, b).values():
            assert change == pytest.approx(Shift(0, 0), abs=1e-5)
        assert towards(readings, a, b) == 0
    full = readings[frozenset()]
    readings[frozenset()] = SentenceRows({**full.rows, 0: torch.zeros(8)}, full.after - effect[0])
    for change in shifts(readings, 0, 1).values():
        assert change == pytest.approx(Shift(1, 1), abs=1e-5)
    readings[frozenset()] = SentenceRows({**full.rows, 0: row[1]}, full.after)
    assert towards(readings, 0, 1) == pytest.approx(1)


def test_the_company_of_a_lone_item_is_the_rest_of_the_prompt():
    texts = {gone: s.text for gone, s in variants("one mouse in a park", [(4, 9)]).items()}
    assert texts == {
        frozenset(): "one mouse in a park",
        frozenset({0}): "one thing in a park",
        frozenset({REST}): "mouse",
        frozenset({0, REST}): "thing",
    }


def test_position_between_senses_runs_from_the_meant_one_to_the_other():
    one, two = (SentenceRows({0: torch.randn(8)}, None) for _ in range(2))
    between = SentenceRows({0: 0.75 * one.rows[0] + 0.25 * two.rows[0]}, None)
    for full, t in ((one, 0), (two, 1), (between, 0.25)):
        assert sense_position(full, one, two, 0) == {"own": pytest.approx(t, abs=1e-5)}


# -- linting -----------------------------------------------------------------------------------------------


def test_every_layout_is_linted(any_pipe):
    (found,) = lint(any_pipe, ["a [mouse] and a [laptop]"], items="mouse=red mouse|old mouse")
    assert [item.text for item in found.items] == ["mouse", "laptop"]
    for item in found.items:
        assert 0 <= item.risk <= 1 and item.z == max(f.z for f in item.encoders.values())
        assert set(item.encoders) == {h.call.name for h in encoder_calls(any_pipe)}
        assert found.prompt[slice(*item.span)] == item.text
    assert all(set(f.senses) == {"old mouse"} for f in found.items[0].encoders.values())


def test_the_denoiser_never_runs(sd1):
    def refuse(*_):
        raise AssertionError("the denoiser ran")

    hook = sd1.unet.register_forward_pre_hook(refuse)
    try:
        assert lint(sd1, "a [mouse] and a [laptop]")[0].error is None
    finally:
        hook.remove()


def test_a_prompt_that_does_not_fit_is_reported_and_the_next_is_read(sd1):
    long = "a [mouse] and " + "a zebra and " * 40 + "a [laptop]"
    bad, good, none = lint(sd1, [long, "a [mouse] and a [laptop]", "nothing named"])
    assert "77 tokens" in bad.error and good.error is None and "no item" in none.error


def test_z_is_measured_against_the_items_own_bank():
    assert ReferenceStatistics(0.1, 0.05).z(Shift(1.0, 0.3)) == pytest.approx(4)
    assert ReferenceStatistics(0.1, 0.0).z(Shift(1.0, 0.4)) == pytest.approx(10)  # never less spread than 0.03


def test_neutral_objects_have_an_article():
    assert all(len(text.split()) == 2 for text in NEUTRAL)


# -- calibration -------------------------------------------------------------------------------------------

Z = [*(0.1 * k for k in range(40)), *(3 + 0.1 * k for k in range(40))]
LEAKS = [False] * 40 + [True] * 40


def test_risk_grows_with_z_and_is_half_where_the_kinds_meet(tmp_path):
    made = fit(Z, LEAKS, {"text_encoder": "x"}, "a test")
    risks = [made.risk(z) for z in (-100, 0, 3.45, 7, 100)]
    assert risks == sorted(risks) and risks[2] == pytest.approx(0.5, abs=0.05)
    (tmp_path / "c.json").write_text(made.to_json())
    assert RiskCalibration.load(tmp_path / "c.json") == made


@pytest.mark.parametrize(
    "z, leaks, why", [(Z[:45], LEAKS[:45], "at least"), ([-x for x in Z], LEAKS, "no more than others")]
)
def test_labels_from_which_no_risk_can_be_told_are_refused(z, leaks, why):
    with pytest.raises(BadInput, match=why):
        fit(z, leaks, {}, "a test")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"schema": "unleak/lint-calibration/3", "slope": 1}', "\x00"])
def test_a_broken_calibration_file_is_refused(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(BadInput, match="no calibration"):
        RiskCalibration.load(tmp_path / "c.json")


def test_a_calibration_of_an_older_measure_is_refused_by_its_version(tmp_path, sd1):
    made = json.loads(RiskCalibration(2.0, -1.0, Linter(sd1).digests, 40, 20, "a test").to_json())
    (tmp_path / "c.json").write_text(json.dumps({**made, "schema": "unleak/lint-calibration/2"}))
    with pytest.raises(BrokenFile, match=r"c\.json.*lint-calibration/2.*reads version 3.*unleak lint FILE --fit"):
        RiskCalibration.load(tmp_path / "c.json")


def test_a_calibration_belongs_to_its_encoders(sd1):
    linter = Linter(sd1)
    assert not linter.calibrated
    own = RiskCalibration(2.0, -1.0, linter.digests, 40, 20, "a test")
    assert Linter(sd1, own).calibrated
    with torch.no_grad():
        other = tiny("sd1", seed=1)
    with pytest.raises(BadInput, match="other text encoders"):
        Linter(other, own)


def test_a_calibration_of_copies_is_not_one_of_lint(sd1):
    of_copies = Calibration("m", "f", "norm", 1.0, 0.01, 1, 4, {}, 0.9, 0.5, {}, 20, 20)
    with pytest.raises(BadInput, match="RiskCalibration"):
        Linter(sd1, of_copies)


def test_half_precision_and_folder_do_not_change_who_an_encoder_is(tmp_path):
    pipe = models.load(models.embedded_folder("emoji-sd"), text_only=True)
    digests = Linter(pipe).digests
    pipe.text_encoder.half().float().save_pretrained(tmp_path)
    pipe.text_encoder = type(pipe.text_encoder).from_pretrained(tmp_path)
    assert Linter(pipe).digests == digests


def test_labels_are_needed_for_a_calibration(sd1):
    with pytest.raises(BadInput, match="line 1: no field leaks"):
        calibrate(Linter(sd1), [line(1, "a [mouse] and a [laptop]")], "a test")


# -- prompt files ------------------------------------------------------------------------------------------


def lines_of(data: bytes, form="text", items=(), **more):
    return list(read_prompts(io.BytesIO(data), form, items, **more))


def test_bad_lines_are_reported_by_number_and_the_next_are_read():
    good = b"a [mouse] and a [laptop]\n"
    bad = [b"\xff\xfe\n", b"x" * (LONGEST + 1) + b"\n", b"no items\n", b"a [mou]se\n", b"[a][a\n"]
    data = b"".join(b + good for b in bad)
    found = lines_of(b"\xef\xbb\xbf\n" + data)
    assert [x.number for x in found] == list(range(2, 2 + 2 * len(bad)))
    assert [x.error is None for x in found] == [False, True] * len(bad)
    assert "UTF-8" in found[0].error and "longer" in found[2].error


def test_jsonl_records():
    rows = [
        {"prompt": "a mouse and a mouse", "items": ["mouse#2=red mouse"], "leaks": ["mouse"]},
        {"prompt": "a mouse", "items": "mouse"},
        {"prompt": "a mouse", "items": ["mouse"], "leaks": ["laptop"]},
        {"prompt": 7},
        ["a mouse"],
    ]
    found = lines_of("\n".join(map(json.dumps, rows)).encode() + b'\n{"prompt": \n', "jsonl")
    assert [x.error is None for x in found] == [True, True, False, False, False, False]
    assert found[0].leaks == (True,) and found[0].spans == ((14, 19),) and found[0].items[0].sense == "red mouse"
    assert found[1].leaks is None and "laptop" in found[2].error


def test_csv_fields_may_hold_line_breaks_and_bad_rows_do_not_end_the_file():
    data = b'id,prompt,items\n1,"a mouse\nand a laptop","mouse,laptop"\n2,a mouse\n\n3,a mouse,mouse\n'
    found = lines_of(data, "csv")
    assert [(x.number, x.error is None) for x in found] == [(2, True), (4, False), (6, True)]
    assert found[0].prompt == "a mouse\nand a laptop"
    with pytest.raises(BadInput, match="--column"):
        lines_of(data, "csv", column="caption")


def test_watched_words_are_found_each_time_and_the_longer_one_first():
    from unleak.text.items import parse_items

    watched = parse_items("dog,hot dog=sausage,cat")
    (found,) = lines_of(b"a hot dog, a dog and a Dog\n", items=watched)
    assert sorted(found.spans) == list(found.spans)
    assert [(i.text, i.occurrence, i.sense) for i in found.items] == [("hot dog", None, "sausage"), ("dog", 2, None)]
    (named,) = lines_of(b"a [hot dog]\n", items=watched)
    assert named.items[0].sense == "sausage"


@given(st.binary(max_size=200), st.sampled_from(["text", "jsonl"]))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_read_to_the_end_or_refused_as_no_text(data, form):
    try:
        found = lines_of(data, form)
    except BadInput as e:
        assert any(kind in str(e) for kind in ("is no text", "NUL", "is no UTF-", "no prompts line by line"))
        return
    assert [x.number for x in found] == sorted({x.number for x in found})


def test_the_format_is_given_or_the_ending():
    assert [format_of(p) for p in ("a.JSONL", "a.csv", "a.txt", "-")] == ["jsonl", "csv", "text", "text"]
    with pytest.raises(BadInput, match="Choose from"):
        format_of("a.txt", "yaml")


# -- output files ------------------------------------------------------------------------------------------

HEAD = {"schema": "unleak/lint/1", "model": "é", "source": "x", "calibrated": True, "settings": {}, "versions": {}}
LINES = [line(k, f"a [mouse] number {k}") for k in range(1, 2 * CHUNK + 10)]


class Echo:
    """A linter that says how long the prompt is, and counts what it is given."""

    def __init__(self):
        self.encoded = 0

    def chunk(self, lines):
        self.encoded += len(lines)
        item = ItemLint("mouse", (2, 7), 0.0, 0.0, "text_encoder", None, {})
        return [PromptLint(x.number, x.prompt, [item], x.error) for x in lines]


def run_to(path: Path) -> int:
    echo = Echo()
    lint_file.run(echo, LINES, HEAD, path)
    return echo.encoded


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "out.jsonl"
    run_to(path)
    return path.read_bytes()


@given(cut=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_a_run_killed_at_any_byte_ends_with_the_same_bytes(whole, tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "out.jsonl"
    path.write_bytes(whole[: cut % (len(whole) + 1)])
    run_to(path)
    assert path.read_bytes() == whole
    assert run_to(path) == 0  # nothing is left to do
    assert [p.name for p in path.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize(("content", "says"), [
    ("my poem\n", "no lint"), ("my poem", "no lint"),
    (json.dumps({**HEAD, "model": "other"}) + "\n", "a lint with another model:"),
])  # fmt: skip
def test_a_file_of_something_else_is_left_alone(tmp_path, content, says):
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(BadInput, match=says):
        run_to(path)
    assert path.read_text() == content


def test_results_of_other_prompts_are_not_gone_on_with(whole, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(whole)
    changed = [*LINES[:5], line(6, "another [mouse]"), *LINES[6:]]
    with pytest.raises(BadInput, match=r"line 6 .* changed"):
        lint_file.run(Echo(), changed, HEAD, path)
    with pytest.raises(BadInput, match="more prompts"):
        lint_file.run(Echo(), LINES[:-1], HEAD, path)
    path.write_bytes(whole.replace(b'{"line": 3,', b'"line": 3,'))
    with pytest.raises(BadInput, match=r"line 4 .* damaged"):
        run_to(path)


def test_two_runs_do_not_write_one_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with Stream(path, HEAD, CHUNK) as out:
        out.write()
        with pytest.raises(BadInput, match="another lint writes"):
            run_to(path)
    assert path.read_bytes() == encode(HEAD)
    run_to(path)


def test_equal_chunks_give_equal_bits(sd1):
    """What makes a resumed run identical: banks already known, or another chunk before, change nothing."""
    lines = [line(k, f"a [mouse] and a [{word}]") for k, word in enumerate(("laptop", "zebra", "house", "red bus"), 1)]
    fresh, used = Linter(sd1), Linter(sd1)
    used.chunk(lines[2:])
    used.chunk([line(1, "the [cat] on a [table] by a [lion]")])
    assert used.chunk(lines) == fresh.chunk(lines)


def test_no_usable_line_is_an_error(tmp_path):
    with pytest.raises(BadInput, match="there is no prompt"):
        lint_file.run(Echo(), [], HEAD)
    with pytest.raises(BadInput, match="no usable prompt; line 2"):
        lint_file.run(Echo(), read_prompts(io.BytesIO(b"\nx\n")), HEAD)


def test_the_page_shows_the_riskiest_and_escapes(sd1):
    lines = read_prompts(io.BytesIO(b"a [mouse] and a <script> [laptop]\n\xff\n"))
    found = lint_file.run(Linter(sd1), lines, HEAD)
    html = report.page(found)
    assert "&lt;script&gt;" in html and "<script" not in html and "1 lines could not be used" in html


# -- the embedded model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def emoji():
    return models.load("emoji-sd", text_only=True)


@pytest.mark.e2e
def test_leaks_of_held_out_prompts_are_told_from_the_rest(emoji):
    from unleak.bench.words.lint import figures, labelled
    from unleak.world import load

    found = {(r.metric, r.subset): r for r in figures(Linter(emoji), labelled(load(), "heldout"))}
    assert found["lint_auroc", "all"].low >= 0.9
    assert found["lint_prompts_per_minute", "all"].value > 0


@pytest.mark.e2e
def test_the_shipped_calibration_is_that_of_the_shipped_encoder(emoji):
    linter = Linter(emoji)
    assert linter.calibrated and shipped(linter.digests) == (linter.calibration, True)
    leak, neutral = linter([line(1, "a [guitar] next to a [key]"), line(2, "a [house] next to a [key]")])
    assert leak.items[1].risk > 0.5 > neutral.risk and leak.items[1].by == "guitar" and leak.items[0].risk < 0.5


@pytest.mark.e2e
def test_the_position_between_senses_says_which_one_it_is(emoji):
    sense = "mouse=furry mouse|computer mouse"
    leak, neutral = lint(emoji, ["a [laptop] and a [mouse]", "a [house] and a [mouse]"], sense)
    at = [x.items[1].encoders["text_encoder"].senses["computer mouse"] for x in (leak, neutral)]
    assert at[0]["after"] > 0.5 > at[1]["after"] and at[0]["own"] > at[1]["own"]


def command(*args: str, stdin: bytes = b""):
    from typer.testing import CliRunner

    from unleak.cli import app

    return CliRunner().invoke(app, ["lint", *args], input=stdin)


@pytest.mark.e2e
def test_the_command(tmp_path):
    file, out, page = tmp_path / "p.txt", tmp_path / "out.jsonl", tmp_path / "page.html"
    file.write_bytes(b"a guitar next to a key\na house next to a key\n\xff\n")
    shown = command("-", stdin=file.read_bytes())
    assert shown.exit_code == 0 and "1 lines could not be used: 3" in shown.stderr
    head, *records = map(json.loads, shown.stdout.splitlines())
    assert head["schema"] == "unleak/lint/1" and [r["line"] for r in records] == [1, 2, 3]
    assert records[0]["risk"] > records[1]["risk"] and "error" in records[2]
    assert list(records[0]["items"][1]["encoders"]["text_encoder"]["senses"]) == ["piano key"]
    written = command(str(file), "-o", str(out), "--html", str(page), "--fail-over", "0.3")
    assert written.exit_code == 3 and "a guitar next to a key" in written.stdout.splitlines()[0]
    assert [json.loads(x) for x in out.read_text().splitlines()][1:] == records
    assert "a guitar" not in page.read_text() and "<mark" in page.read_text()


def test_bad_use_of_the_command_ends_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"")
    for args in (
        [str(tmp_path / "none.txt")],
        [str(tmp_path)],
        [str(empty), "-o", str(empty)],
        [str(empty), "--format", "yaml"],
        [str(empty), "--html", str(tmp_path / "no" / "page.html")],
        [str(empty), "--calibration", str(empty)],
        [str(empty), "--items", "mouse,"],
        [str(empty), "--fail-over", "2"],
        [str(empty)],
    ):
        result = command(*args)
        assert result.exit_code == 2, (args, result.output, result.exception)


def test_sentences_without_the_item_are_encoded_once_for_all_items():
    """Beside "a house", "a mouse" and "a bat" both need "a thing and a house": the second item encodes half as many."""
    from unleak.models import load
    from unleak.text.encoder_calls import encoder_calls
    from unleak.words.lint.neutral import NeutralBank
    from unleak.words.lint.shift import SentenceEncoder

    encoder, counts = SentenceEncoder(encoder_calls(load("emoji-sd", text_only=True))[0]), []
    read = encoder.read
    encoder.read = lambda cuts: counts.append(len(cuts)) or read(cuts)
    bank = NeutralBank(encoder)
    alone = NeutralBank(SentenceEncoder(encoder_calls(load("emoji-sd", text_only=True))[0]))
    bank.statistics(("a mouse", (2, 7)), True)
    first, counts[:] = sum(counts), []
    assert bank.statistics(("a bat", (2, 5)), True) == alone.statistics(("a bat", (2, 5)), True)
    assert first == 2 * sum(counts)

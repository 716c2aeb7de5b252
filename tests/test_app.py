"""`unleak app` without a browser: the page is built, its handlers are called, bad input is answered in words."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from unleak.cli import app
from unleak.errors import BadInput, UnsupportedModel

gr = pytest.importorskip("gradio", reason="the app needs gradio: pip install 'unleak[app]'")

from unleak.app import lint, words  # noqa: E402
from unleak.app.desk import MOST_WAITING, Busy, Cancelled, Desk, Settings, told, waiting  # noqa: E402
from unleak.app.frame import runner  # noqa: E402
from unleak.app.page import ROOMS, build  # noqa: E402
from unleak.app.serve import Server, check_port, need_gradio  # noqa: E402

MODEL = ("emoji-sd", "0", "1", "")  #: model, seeds, steps, guidance as they stand on the page


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.close()


def press(desk: Desk, work: Any, *inputs: Any, model: tuple[Any, ...] = MODEL, outputs: int = 1) -> list[list[Any]]:
    """All that a button shows, one list of values after the other."""
    request = SimpleNamespace(session_hash="somebody")
    return list(runner(desk, work, outputs)(request, *model, *inputs))


def refused(desk: Desk, work: Any, *inputs: Any, model: tuple[Any, ...] = MODEL) -> str:
    """What the page says of an input that cannot be used; the same stands under the buttons and in the message."""
    lines = []
    with pytest.raises(gr.Error) as error:
        for state, *_ in runner(desk, work, 1)(SimpleNamespace(session_hash="somebody"), *model, *inputs):
            lines.append(state)
    assert error.value.message in lines[-1] and 'role="alert"' in lines[-1] and "Traceback" not in lines[-1]
    assert error.value.duration is None and not error.value.print_exception
    return error.value.message


def test_the_page_has_every_room_and_says_nothing_to_others() -> None:
    desk = Desk()
    page = build(desk)
    tabs = [block.label for block in page.blocks.values() if isinstance(block, gr.Tab)]
    assert [tab for tab in tabs if tab in ROOMS] == list(ROOMS)
    assert not page.analytics_enabled and page.delete_cache
    assert all(fn.api_visibility == "private" for fn in page.fns.values() if fn.targets[0][1] == "click")
    desk.close()
    assert not desk.folder.exists()


def test_a_diagnosis_shows_maps_report_code_and_files(desk: Desk) -> None:
    shown = press(desk, words.diagnose, "a key and a guitar", ["key", "guitar"], "", "", outputs=9)
    state, _, looking, item, pictures, views, report, *files = shown[-1]
    assert "Done in" in state and looking["visible"]
    assert item["choices"] == ["key", "guitar", words.PICTURE] and views["key"] == pictures
    assert [under for _, under in pictures] == ["seed 0"]
    assert "sandbox=" in report and "allow-scripts" not in report and "unleak diagnose" in report
    paths = [Path(file["value"]) for file in files]
    assert [path.suffix for path in paths] == [".html", ".json", ".zip"] and all(path.stat().st_size for path in paths)
    assert any("Loading" in line or "passes" in line or "Starting" in line for line, *_ in shown[:-1])


def test_a_repair_shows_before_and_after_and_code(desk: Desk) -> None:
    *_, last = press(desk, words.repair, "a [key] and a [guitar]", [], "", "patch", outputs=9)
    assert "unleak.attach" in last[1]["value"] and "After, from the same noise" in last[6]


def test_a_lint_sorts_prompts_and_names_lines_that_it_cannot_use(desk: Desk) -> None:
    *_, (_, report, *files) = press(desk, lint.lint, "a dog and a tree\na key and a guitar\nnothing", "", outputs=4)
    assert report.index("guitar") < report.index("dog") and "no item is named" in report and len(files) == 3


def test_words_to_click_are_those_of_the_prompt_and_an_embedded_model_knows_its_own() -> None:
    assert words.words_in("a [key] and a guitar", "emoji-sd") == (["key", "guitar", "and"], ["key", "guitar"])
    assert words.words_in("a hot dog", "/no/model") == (["hot", "dog"], [])
    assert words.words_in("", "emoji-sd") == ([], [])


@pytest.mark.parametrize("prompt, chosen, more, said", [
    ("", [], "", "prompt"),
    ("a thing of mine", [], "", "no item is named"),
    ("a key and a guitar", [], "piano", "piano"),
    ("a [key and a guitar", [], "", "rackets"),
    ("a key and a key", ["key"], "", "key"),
    ("a key, " * 100, ["key"], "", "key"),
])  # fmt: skip
def test_a_prompt_that_cannot_be_used_is_answered_in_words(
    desk: Desk, prompt: str, chosen: list[str], more: str, said: str
) -> None:
    assert said in refused(desk, words.diagnose, prompt, chosen, more, "")
    assert said in refused(desk, words.repair, prompt, chosen, more, "auto")


@pytest.mark.parametrize("model, said", [
    (("", "0", "", ""), "no model"),
    (("emoji-nothing", "0", "", ""), "no model"),
    (("/etc", "0", "", ""), "model_index.json"),
    (("emoji-sd", "", "", ""), "seeds"),
    (("emoji-sd", "0:999", "", ""), "at most"),
    (("emoji-sd", "3,3", "", ""), "twice"),
    (("emoji-sd", "0", "0", ""), "steps"),
    (("emoji-sd", "0", "²", ""), "steps"),
    (("emoji-sd", "0", "", "much"), "guidance"),
    (("emoji-sd", "0", "", "nan"), "finite"),
])  # fmt: skip
def test_settings_that_cannot_be_used_are_answered_in_words(desk: Desk, model: tuple[str, ...], said: str) -> None:
    assert said in refused(desk, words.diagnose, "a key and a guitar", ["key"], "", "", model=model)


@pytest.mark.parametrize("prompts, said", [
    ("", "no prompt"), ("\n \n", "no prompt"), ("nothing", "line 1"), ("a [key", "rackets"), ("a\n" * 1001, "1001"),
])  # fmt: skip
def test_prompts_that_cannot_be_linted_are_answered_in_words(desk: Desk, prompts: str, said: str) -> None:
    assert said in refused(desk, lint.lint, prompts, "")


def test_what_people_and_files_say_is_escaped(desk: Desk) -> None:
    message = refused(desk, words.diagnose, "a <b>key</b>", [], "<img src=x onerror=alert(1)>", "")
    assert "<img" not in message and "&lt;img" in message
    *_, (_, report, *_) = press(desk, lint.lint, 'a [key]"><script> and a [guitar]', "", outputs=4)
    assert "<script" not in report and report.count("<iframe") == report.count(">") - report.count("/iframe>") == 1


def test_what_nobody_has_foreseen_is_logged_and_shown_without_a_stack_trace(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Any) -> list[Any]:
        raise RuntimeError("secret detail")

    message = refused(desk, fail)
    assert "secret" not in message and "nobody has foreseen" in message and "secret detail" in caplog.text
    assert "not enough memory" in told(MemoryError())[1]


def test_a_job_is_cancelled_while_it_draws_and_the_next_one_runs(desk: Desk) -> None:
    arguments = ("a key and a guitar", ["key", "guitar"], "", "")
    handler = runner(desk, words.diagnose, 9)(SimpleNamespace(session_hash="me"), "emoji-sd", "0:8", "", "", *arguments)
    next(line for line, *_ in handler if "passes" in line)
    assert desk.cancel("somebody else") == 0 and desk.cancel("me") == 1
    *_, (state, *_) = handler
    assert "Cancelled" in state and not desk.jobs
    pipe = desk.pipeline("emoji-sd", False)
    assert not any(part._forward_pre_hooks for part in (pipe.unet, pipe.vae, pipe.text_encoder))
    assert "Done" in press(desk, words.diagnose, *arguments, outputs=9)[-1][0]


def test_jobs_wait_for_each_other_and_a_page_that_is_closed_cancels_its_own(desk: Desk) -> None:
    going, order = threading.Event(), []
    first = desk.ask("a", Settings(), lambda job: [going.wait(20), order.append("a")])
    second = desk.ask("b", Settings(), lambda job: order.append("b"))
    third = desk.ask("c", Settings(), lambda job: order.append("c"))
    shown = waiting(third, 0.01)
    assert next(shown) == "Waiting: 2 jobs come before yours."
    shown.close()
    going.set()
    second.future.result(20)
    with pytest.raises(Cancelled):
        third.future.result(20)
    assert order == ["a", "b"] and first.future.done()


def test_too_many_jobs_are_refused_in_words(desk: Desk) -> None:
    going = threading.Event()
    jobs = [desk.ask("a", Settings(), lambda job: going.wait(20)) for _ in range(MOST_WAITING + 1)]
    with pytest.raises(Busy, match="try again"):
        desk.ask("b", Settings(), lambda job: None)
    desk.cancel("a")
    going.set()
    assert [type(job.future.exception(20)) for job in jobs[1:]] == [Cancelled] * MOST_WAITING


def test_a_desk_that_is_closed_ends_what_it_draws_and_leaves_no_file() -> None:
    desk = Desk()
    began = threading.Event()

    def draw(job: Any) -> None:
        began.set()
        while True:
            time.sleep(0.01)
            job.wanted()

    job = desk.ask("a", Settings(), draw)
    began.wait(20)
    desk.close()
    assert isinstance(job.future.exception(1), Cancelled) and not desk.folder.exists()
    with pytest.raises(Busy, match="stopped"):
        desk.ask("a", Settings(), draw)


def test_old_results_are_deleted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unleak.app.desk.KEPT", 2)
    for _ in range(5):
        desk.ask("a", Settings(), lambda job: (desk.folder / str(job.number)).mkdir()).future.result(20)
    assert len([f for f in desk.folder.iterdir() if f.name.isdecimal()]) == 3


def get(url: str) -> tuple[int, str, Any]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as e:
        return e.code, "", e.headers


def test_the_server_is_local_gives_no_foreign_file_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")
    with Server(port=0) as server:
        assert server.url.startswith("http://127.0.0.1:") and server.page.share_url is None
        status, _, headers = get(server.url)
        assert status == 200 and "default-src 'self'" in headers["content-security-policy"]
        for file in ("/etc/passwd", str(Path(__file__)), str(server.desk.folder / "x"), "pyproject.toml"):
            assert get(f"{server.url}gradio_api/file={file}")[0] in (403, 404)
        with pytest.raises(BadInput, match="--port"), Server(port=int(server.url.rsplit(":")[-1].strip("/"))):
            pass
        uploads = Path(server.uploads.name)
        assert uploads.is_dir()
    assert not uploads.exists() and not server.desk.folder.exists()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(server.url, timeout=5)


def test_a_host_that_is_not_here_is_answered_in_words() -> None:
    with pytest.raises(BadInput, match="--host"), Server(host="no.such.host.invalid", port=0):
        pass


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UnsupportedModel, match=r"pip install 'unleak\[app\]'"):
        need_gradio()
    done = CliRunner().invoke(app, ["app", "--port", "0"])
    assert done.exit_code == 4 and "pip install 'unleak[app]'" in done.stderr


def test_no_other_command_imports_gradio() -> None:
    code = "import sys, unleak, unleak.cli, unleak.app; assert not {'gradio', 'fastapi'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("host", ["\udcff", "a\0b", "no host", "256.1.1.1", "::g"])
def test_a_host_that_is_none_is_refused_in_words(host: str) -> None:
    with pytest.raises(BadInput, match="cannot listen on"):
        check_port(host, 0)
    assert check_port("127.0.0.1", 0) > 0

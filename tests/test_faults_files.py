"""Faults of files and commands, by kind: what is written where, and how errors become words."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from test_floors import SOURCE
from unleak import models
from unleak.cli import app, console
from unleak.cli.command import command
from unleak.copies.scan import scanner
from unleak.errors import BadInput, CannotWrite, UnsupportedModel, printable
from unleak.files.atomic import locked, only_writer, replacing, write_atomic
from unleak.files.jsonl import Stream, check_rejects, rejects_of
from unleak.files.outputs import Door, Writes, same_file
from unleak.files.parts import Parts
from unleak.report.pages import render
from unleak.words.lint.lint import Linter

HEADER = {"schema": "unleak/scan/1"}
SEVERAL = "".join(f"a cat number {k}\n" for k in range(20))
posix = pytest.mark.skipif(os.name == "nt", reason="devices, links and modes of POSIX")


@pytest.fixture
def unleak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimpleNamespace]:
    """The command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: str = "") -> SimpleNamespace:
        done = CliRunner().invoke(app, list(args), input=stdin)
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return SimpleNamespace(code=done.exit_code, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture
def tiny_model(sd1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "load", lambda *_, **__: sd1)
    monkeypatch.setattr(models, "settings", lambda _: {"height": 64, "width": 64, "num_inference_steps": 1})


def fill(folder: Path) -> dict[str, bytes]:
    """Inputs, and other names of them."""
    for name in ("p.txt", "o.txt", "before.png", "known.rejects.jsonl"):
        (folder / name).write_text(f"a cat in {name}\n")
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("p.txt")
    os.link(folder / "p.txt", folder / "hard")
    (folder / "out").mkdir()
    (folder / "out" / "before.png").symlink_to("../before.png")
    (folder / "saved" / "unet").mkdir(parents=True)
    (folder / "saved" / "unet" / "config.json").write_text("{}")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_empty_name_of_a_folder_is_refused(unleak: Any, no_model: None, tmp_path: Path) -> None:
    """A variable that is not set (`-o "$OUT"`) would pour the output into the current folder."""
    done = unleak("generate", "a cat", "-o", "")
    assert done.code == 2 and "the name is empty" in " ".join(done.err.split())
    assert not list(tmp_path.iterdir())


@posix
@pytest.mark.parametrize("args", [
    "calibrate --memorized p.txt --ordinary o.txt -o p.txt",
    "calibrate --memorized p.txt --ordinary o.txt -o sub/../o.txt",
    "calibrate --memorized p.txt --ordinary o.txt -o hard",
    "bench copies --memorized p.txt --ordinary o.txt -o p.txt",
    "scan p.txt -o link",
    "scan link -o ./p.txt",
    "scan p.txt -o hard",
    "scan hard --html link",
    "scan known.rejects.jsonl -o known.jsonl",
    "scan p.txt --calibration o.txt -o o.txt",
    "lint p.txt -o p.txt",
    "lint hard --fit p.txt",
    "lint p.txt --calibration o.txt -o o.txt",
    "redundancy p.txt -o p.txt",
    "redundancy p.txt -o x --json link",
    "repair cat --items cat --redundancy p.txt --json p.txt",
    "tokens cat --items cat --pad mean --bank p.txt --json link",
    "edit before.png --edit cat=dog -o .",
    "edit before.png --edit cat=dog -o sub/..",
    "edit before.png --edit cat=dog -o out",
    "edit p.txt --edit cat=dog --json p.txt",
    "edit o.txt --edit cat=dog@p.txt --json hard",
    "regions cat --region cat@p.txt --json p.txt",
    "guard cat --gate p.txt --json hard",
    "audit p.txt --json p.txt",
    "generate cat -m saved --json saved/unet/config.json",
    "generate cat --judge saved/unet --json saved/unet/config.json",
])  # fmt: skip
def test_an_output_never_names_an_input(unleak: Any, no_model: None, tmp_path: Path, args: str) -> None:
    before = fill(tmp_path)
    done = unleak(*args.split())
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert any(says in done.err for says in ("that is read", "folder p.txt")), done.err
    assert contents(tmp_path) == before


@posix
def test_a_file_that_is_read_from_stdin_is_an_input_too(tmp_path: Path) -> None:
    (file := tmp_path / "p.txt").write_text("a cat\n")
    code = "from unleak.cli import app; app()"
    with file.open() as stdin:
        done = subprocess.run([sys.executable, "-c", code, "lint", "-", "-o", str(file)], stdin=stdin,
                              capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and "that is read" in done.stderr and file.read_text() == "a cat\n"


@posix
@pytest.mark.parametrize("args", [
    "generate cat --json a.html --html a.html",
    "generate cat --json x/../a.html --html a.html",
    "generate cat --json a.HTML --html A.html",
    "generate cat --json link --html page.html",
    "generate cat -o out --json out",
    "generate cat -o out/sub --json out",
    "generate cat -o x --json x/..",
    "generate cat -o x --json x/",
    "generate cat -o x --json x/result.json",
    "generate cat -o x --html x/INDEX.html",
    "generate cat -o x --json x/images-0.png",
    "scan p.txt -o scan.html --html scan.html",
    "scan p.txt -o scan.html --html scan.rejects.html",
    "lint p.txt -o link --html page.html",
])  # fmt: skip
def test_two_outputs_never_are_one_file(unleak: Any, no_model: None, tmp_path: Path, args: str) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("page.html")
    (tmp_path / "page.html").write_text("a page")
    before = contents(tmp_path)
    done = unleak(*args.split())
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert contents(tmp_path) == before


def test_different_files_are_not_refused(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_text("a photo")
    folder = (Writes("-o", ("before.png",)), tmp_path)
    json_file = (Writes("--json"), tmp_path / "x.json")
    with Door([("picture", tmp_path / "photo.png")], [folder, json_file]):
        write_atomic(tmp_path / "before.png", "new")


def test_a_command_cannot_forget_to_say_what_a_path_is() -> None:
    def forgetful(cmd: Any, file: Path) -> None: ...

    with pytest.raises(TypeError, match="forgetful: say with Reads or Writes what file is"):
        command(group=typer.Typer())(forgetful)


def test_nothing_that_is_read_is_replaced_even_where_nobody_foresaw_it(tmp_path: Path) -> None:
    (read := tmp_path / "read").write_text("mine")
    (other := tmp_path / "other").symlink_to("read")
    with Door([("picture", read)], []):
        for path in (read, other):
            with pytest.raises(BadInput, match="is the picture that is read"):
                write_atomic(path, "new")
            with pytest.raises(BadInput, match="that is read"), Stream(path, HEADER, 1):
                pass
    assert read.read_text() == "mine" and sorted(p.name for p in tmp_path.iterdir()) == ["other", "read"]
    write_atomic(read, "new")
    assert read.read_text() == "new"


def test_files_are_compared_by_what_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("")
    assert same_file(tmp_path / "a", tmp_path / ".." / tmp_path.name / "a")
    assert not same_file(tmp_path / "a", tmp_path / "b") and not same_file(tmp_path / "a", tmp_path / "c")
    assert same_file(tmp_path / "new", tmp_path / "NEW") and not same_file(tmp_path / "new", tmp_path / "newer")


def test_a_scan_never_touches_rejects_that_are_not_its_own(unleak: Any, no_model: None, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    line = json.dumps({"line": 1, "reason": "x", "text": "y"}) + "\n"
    head = json.dumps(HEADER) + "\n"
    for foreign, out in (("a diary\n", None), (line, None), ("a diary\n", head), ('{"line": 1}\n', head), ("", head)):
        (rejects := tmp_path / "y.rejects.jsonl").write_text(foreign)
        if out is not None:
            (tmp_path / "y.jsonl").write_text(out)
        done = unleak("scan", "p.txt", "-o", "y.jsonl")
        assert done.code == 2 and "y.rejects.jsonl is there already" in done.err, done.err
        assert rejects.read_text() == foreign
    (tmp_path / "y.jsonl").write_text(head)
    rejects.write_text(line)
    check_rejects(tmp_path / "y.jsonl")
    assert rejects_of(tmp_path / "y.jsonl") == rejects


@posix
def test_a_device_and_a_pipe_are_written_through(tmp_path: Path) -> None:
    write_atomic(Path("/dev/null"), "gone")
    with pytest.raises(CannotWrite, match="No space left"):
        write_atomic(Path("/dev/full"), "gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    (link := tmp_path / "link").symlink_to("/dev/null")
    write_atomic(link, "gone")
    assert link.is_symlink() and stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    os.mkfifo(pipe := tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    with pytest.warns(UserWarning, match="waiting"):  # nobody reads yet
        threading.Timer(0.3, reader.start).start()
        write_atomic(pipe, "hello")
    reader.join()
    assert got == ["hello"] and stat.S_ISFIFO(pipe.lstat().st_mode)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "pipe"]


@posix
def test_an_open_file_is_written_to_where_it_stands(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as file:
        file.write("before\n")
        file.flush()
        write_atomic(Path(f"/dev/fd/{file.fileno()}"), "data\n")
        file.write("after\n")
    assert (tmp_path / "x").read_text() == "before\ndata\nafter\n"


@posix
@pytest.mark.parametrize("name", ["/dev/null", "/dev/full", "/dev/stdout", "pipe", "link"])
def test_a_file_that_a_run_goes_on_with_is_no_device(unleak: Any, no_model: None, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/full")
    with pytest.raises(BadInput, match="is no file that a scan can go on with"), Stream(tmp_path / name, HEADER, 1):
        pass


@posix
def test_links_are_followed_and_stay(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (link := tmp_path / "link").symlink_to("sub/there")
    for text in ("made", "replaced"):  # the target is not there yet, then it is
        write_atomic(link, text)
        assert link.is_symlink() and (tmp_path / "sub" / "there").read_text() == text
    with Stream(tmp_path / "link2", HEADER, 1) as out:
        out.write({"line": 1})
    (tmp_path / "link3").symlink_to("link2")
    with Stream(tmp_path / "link3", HEADER, 1) as out:
        assert out.count == 1
        with pytest.raises(BadInput, match="another scan writes"), Stream(tmp_path / "link2", HEADER, 1):
            pass


@posix
@pytest.mark.parametrize(("path", "says"), [
    ("loop", "cannot be written"), ("tofolder", "is no file name"), ("file/x", "file"), ("sub", "is no file name"),
    ("lost/x", "there is no folder"), ("tolost", "there is no folder"), ("sub/", "is no file name"),
    ("x" * 300, "too long"), ("socket", "neither a file nor a pipe"), ("x\0y", "NUL"),
])  # fmt: skip
def test_a_path_that_cannot_be_written_is_refused_at_once(
    unleak: Any, no_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, says: str
) -> None:
    import socket

    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "sub").mkdir()
    (tmp_path / "tofolder").symlink_to("sub")
    (tmp_path / "tolost").symlink_to("lost/x")
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        before = sorted(p.name for p in tmp_path.iterdir())
        done = unleak("generate", "cat", "--json", path)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@posix
@pytest.mark.parametrize("path", ["file", "file/x", "loop", "lost", "pipe", "x" * 300])
def test_a_folder_that_cannot_be_made_is_refused_at_once(
    unleak: Any, no_model: None, tmp_path: Path, path: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "lost").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    done = unleak("generate", "cat", "-o", path)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert (tmp_path / "file").read_text() == ""


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_a_file_keeps_its_mode_and_a_new_one_has_the_usual(tmp_path: Path, mode: int) -> None:
    (old := tmp_path / "old").write_text("")
    old.chmod(mode)
    before = os.umask(0o027)
    try:
        if mode & 0o200:
            write_atomic(old, "x")
        write_atomic(tmp_path / "new", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE(old.stat().st_mode) == mode and stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@posix
def test_a_read_only_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (old := tmp_path / "old").write_text("mine")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may be run by root, who may do all
    with pytest.raises(CannotWrite, match="Permission denied"):
        write_atomic(old, "x")
    with pytest.raises(CannotWrite, match="Permission denied"), Stream(old, HEADER, 1):
        pass
    assert old.read_text() == "mine"


@posix
def test_what_waits_under_the_name_of_a_lock_stays(tmp_path: Path) -> None:
    (mine := tmp_path / "mine").write_text("mine")
    for name, of in ((".x.lock", tmp_path / "x"), (".lock", tmp_path)):
        (link := tmp_path / name).symlink_to("mine")
        with pytest.raises(BadInput, match="is no lock"), locked(of):
            pass
        link.unlink()
        (tmp_path / name).write_text("notes")
        with pytest.raises(BadInput, match="is no lock"), locked(of):
            pass
        assert (tmp_path / name).read_text() == "notes"
        (tmp_path / name).unlink()
    with only_writer(tmp_path):
        pass
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, ValueError])
def test_no_part_of_a_file_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    (old := tmp_path / "old").write_text("old")
    with pytest.raises(error), replacing(old) as file:
        file.write(b"half")
        raise error
    assert old.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["old"]


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        write_atomic(tmp_path / name, "x")
        with Stream(tmp_path / f"s{name[1:]}", HEADER, 1) as out:
            out.write({"line": 1})
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_and_its_folder_are_on_the_disk_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, really = [], os.fsync

    def fsync(number: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(number).st_mode))
        really(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "x", "x")
    assert synced == [False, True]


# -- outputs that are taken away -------------------------------------------------------------------------------


def test_a_stream_that_was_removed_or_replaced_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with pytest.raises(CannotWrite, match="was removed"), Stream(path, HEADER, 1) as out:
        out.write({"line": 1})
        path.unlink()
        out.write({"line": 2})
    with pytest.raises(CannotWrite, match="was removed"), Stream(path, HEADER, 1) as out:
        out.write({"line": 1})
        path.unlink()
    with pytest.raises(CannotWrite, match="was removed"), Stream(path, HEADER, 1) as out:
        out.write({"line": 1})
        path.rename(tmp_path / "moved")
        path.write_text("another")
    assert path.read_text() == "another"


def test_a_part_or_a_picture_that_is_gone_at_the_end_says_so(tmp_path: Path) -> None:
    with Door([], []) as door:
        parts = Parts(tmp_path / "out")
        parts.get("one", 1, lambda: 1)
        door.check_there()
        (tmp_path / "out" / "parts" / "one.json").unlink()
        parts.get("two", 1, lambda: 1)
        with pytest.raises(CannotWrite, match=r"one\.json was written and is gone"):
            door.check_there()
        parts.get("one", 1, lambda: 1)
        door.check_there()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("verb", ["scan", "lint"])
def test_an_output_that_is_removed_while_it_is_written_ends_with_1(
    unleak: Any, tiny_model: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, whole: bool
) -> None:
    import shutil

    (tmp_path / "p.txt").write_text(SEVERAL)
    (folder := tmp_path / "out").mkdir()
    owner, name = (scanner, "measure") if verb == "scan" else (Linter, "chunk")
    work = getattr(owner, name)

    def removing(*args: Any) -> Any:
        (shutil.rmtree(folder) if whole else (folder / "x.jsonl").unlink())
        return work(*args)

    monkeypatch.setattr(owner, name, removing)
    items = ("--items", "cat") if verb == "lint" else ()
    done = unleak(verb, "p.txt", "-m", "m", "-o", "out/x.jsonl", *items)
    assert done.code == 1 and "CannotWrite" in done.err, done.err


# -- exceptions become words -----------------------------------------------------------------------------------


def ending(raised: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as ended, console.errors():
        raise raised
    return ended.value.exit_code, capsys.readouterr().err


@pytest.mark.parametrize(("raised", "status", "says"), [
    (BadInput("no"), 2, "BadInput: no"),
    (CannotWrite("no"), 1, "CannotWrite: no"),
    (UnsupportedModel("no"), 4, "UnsupportedModel: no"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "make room on the disk"),
    (OSError(errno.EMFILE, "Too many open files", "x"), 1, "x: Too many open files; allow more"),
    (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 1, "choose a shorter name"),
    (OSError(errno.EROFS, "Read-only file system", "x"), 1, "choose a path that can be written"),
    (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "x: Permission denied; give the permission"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), 1, "x: Is a directory; name a file"),
    (OSError(errno.EIO, "Input/output error", "x"), 1, "OSError: x: Input/output error"),
    (MemoryError(), 1, "not enough memory"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "not enough memory"),
    (RecursionError("maximum recursion depth exceeded"), 1, "nested too deeply"),
    (OverflowError("int too large to convert to float"), 2, "too large"),
    (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), 2, "not valid UTF-8 text"),
    (KeyboardInterrupt(), 130, "interrupted: nothing half-written was left"),
    (console.Terminated(signal.SIGTERM), 143, "terminated: nothing half-written was left"),
])  # fmt: skip
def test_an_exception_becomes_one_line_and_its_status(
    raised: BaseException, status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, err = ending(raised, capsys)
    assert code == status and says in err and err.count("\n") == 1, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_is_asked_to_end_leaves_no_part(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inherited = signal.signal(number, signal.SIG_DFL)  # a run under nohup ignores it
    with pytest.raises(typer.Exit) as ended, console.errors(), replacing(tmp_path / "x.json") as file:
        file.write(b"half")
        assert len(list(tmp_path.iterdir())) == 1
        os.kill(os.getpid(), number)
        file.write(b"the rest")
    assert ended.value.exit_code == 128 + number and "terminated" in capsys.readouterr().err
    assert not list(tmp_path.iterdir()) and signal.signal(number, inherited) is signal.SIG_DFL


def test_a_process_that_was_told_to_ignore_a_signal_does(tmp_path: Path) -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with console.errors(), replacing(tmp_path / "x.json") as file:
            os.kill(os.getpid(), signal.SIGHUP)
            file.write(b"all")
    finally:
        signal.signal(signal.SIGHUP, earlier)
    assert (tmp_path / "x.json").read_bytes() == b"all"


def test_a_number_of_too_many_digits_becomes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, console.errors():
        int("9" * 5000)
    assert ended.value.exit_code == 2 and "too large" in capsys.readouterr().err


def test_a_closed_pipe_ends_quietly_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert ending(BrokenPipeError(errno.EPIPE, "Broken pipe"), capsys) == (1, "")


def test_a_mistake_of_the_program_is_not_hidden() -> None:
    with pytest.raises(KeyError), console.errors():
        {}["x"]


def test_no_stdout_is_said_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(typer.Exit) as ended, console.errors():
        raise AssertionError("it ran")
    assert ended.value.exit_code == 2 and "stdout is closed" in capsys.readouterr().err


RUN = "from unleak.cli import app; app()"


@posix
@pytest.mark.parametrize(("shell", "status", "lines"), [
    ("'{0}' -c '{1}' --version > /dev/full", 1, 1),
    ("'{0}' -c '{1}' --help > /dev/full", 1, 1),
    ("'{0}' -c '{1}' --help | true; exit ${{PIPESTATUS[0]}}", 1, 0),
    ("'{0}' -c '{1}' --version >&-", 2, 1),
    ("'{0}' -c '{1}' --version 2>&-", 0, 0),
    ("'{0}' -c '{1}' scan none 2> /dev/full", 2, 0),
])  # fmt: skip
def test_a_real_process_whose_output_cannot_be_written(tmp_path: Path, shell: str, status: int, lines: int) -> None:
    line = shell.format(sys.executable, RUN)
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (status, lines), done.stderr
    assert not list(tmp_path.iterdir())


@posix
def test_a_full_disk_under_a_stream_is_one_line(tmp_path: Path) -> None:
    code = """
import resource, sys; from pathlib import Path
from unleak.cli.console import errors
from unleak.files.jsonl import Stream
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
import typer
try:
    with errors(), Stream(Path("x.jsonl"), {"schema": "unleak/scan/1"}, 1) as out:
        for k in range(100): out.write({"line": k})
except typer.Exit as e: sys.exit(e.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    with Stream(tmp_path / "x.jsonl", HEADER, 1) as out:  # and the run can go on
        assert 20 < out.count < 100


# -- what a file says cannot act -------------------------------------------------------------------------------

ACTS = "\x1b[31m \x9b31m \x07 \x00 \x7f \x85 \u202e \u2066 \u200f \u2028 \ufeff \udcff \U000e0041 \r"


def harmless(text: str) -> bool:
    return not any(c in text for c in ACTS if c not in "[]31m \n")


def test_what_acts_is_escaped_and_json_stays_the_same() -> None:
    assert harmless(printable(ACTS)) and printable("\x1b\u202e") == "\\u001b\\u202e"
    for text in ("é ñ 猫 👩\u200d🚀 \t \n", '{"a": 1}'):
        assert printable(text) == text
    data = {"prompt": ACTS, "deep": [ACTS]}
    assert json.loads(printable(json.dumps(data, ensure_ascii=False))) == data


@pytest.mark.parametrize("show", [console.show, console.show_row, lambda text: console.show_json({"x": text})])
def test_lines_rows_and_json_on_stdout_are_escaped(show: Any, capsys: pytest.CaptureFixture[str]) -> None:
    show(ACTS)
    assert harmless(capsys.readouterr().out)


def test_an_error_is_one_line_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    code, err = ending(BadInput(f"{ACTS}\nsecond\n[red]"), capsys)
    assert code == 2 and harmless(err) and err.count("\n") == 1 and "[red]" in err


@pytest.mark.parametrize(
    "args", [("--\x1b[31m",), ("\x1b[31m",), ("lint", "--\u202ex"), ("generate", "--steps", "\x1b")]
)
def test_an_argument_that_the_parser_refuses_is_escaped(unleak: Any, args: tuple[str, ...]) -> None:
    done = unleak(*args)
    assert done.code == 2 and harmless(done.err) and done.err.count("\n") == 1 and "--help" in done.err


@pytest.mark.parametrize("verb", ["scan", "lint", "lint-out"])
def test_a_prompt_that_steers_a_terminal_is_shown_escaped(
    unleak: Any, tiny_model: None, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a [cat] \u202e and \x9b31m"}) + "\n" + '"\x1b[31m"\n')
    out = ("-o", "x.jsonl") if verb != "lint" else ()
    done = unleak(verb.partition("-")[0], "p.jsonl", "-m", "m", *out)
    assert done.code in (0, 2) and harmless(done.out) and harmless(done.err), done.err


def test_nothing_in_the_command_line_prints_past_the_console() -> None:
    for file in (SOURCE / "cli").glob("*.py"):
        if file.name not in ("console.py", "table.py"):
            assert "print(" not in file.read_text(), file


def test_a_page_escapes_what_acts() -> None:
    page = render("notebook.html", settings={}, title=ACTS, rest="<b>\u202e", sheet=None)
    assert harmless(page) and "&lt;b&gt;" in page and "\\u202e" in page


# -- a gate that looked at nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n\n", "\x00\n", "{\n"])
@pytest.mark.parametrize("verb", ["scan", "lint"])
def test_a_gate_that_looked_at_nothing_does_not_pass(
    unleak: Any, tiny_model: None, tmp_path: Path, verb: str, text: str
) -> None:
    (tmp_path / "p.jsonl").write_text(text)
    done = unleak(verb, "p.jsonl", "-m", "m", "--fail-over", "0.5", "-o", "x.jsonl")
    assert done.code == 2 and done.err.count("BadInput") == 1, done.err


def test_a_gate_that_would_not_be_asked_is_refused(unleak: Any, no_model: None, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    done = unleak("lint", "p.txt", "--fit", "fit.json", "--fail-over", "0.5")
    assert done.code == 2 and "leave --fail-over" in done.err

"""Typed errors. Each message says what happened and what to do about it.

``exit_code`` is the status with which the command line ends (0 done, 1 failed, 2 bad use,
3 findings over the limit, 4 unsupported model; 130 interrupted).
"""

from __future__ import annotations

import difflib
import errno
import json
import re
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


class UnleakError(Exception):
    """Base of every error that unleak raises on purpose."""

    exit_code = 1


class BadInput(UnleakError, ValueError):
    """The call itself is wrong: prompt, items, seeds, paths, options."""

    exit_code = 2


class CannotWrite(BadInput):
    """An output could not be written to its end, or was taken away: disk full, no permission, removed meanwhile."""

    exit_code = 1


class ItemNotFound(BadInput):
    """An item's text does not occur in the prompt."""


class AmbiguousItem(BadInput):
    """An item occurs more than once and the call does not say which occurrence is meant."""


class PromptTruncated(BadInput):
    """The prompt is longer than an encoder's length, so part of it would be dropped in silence."""


class SpanMismatch(BadInput):
    """Two spans that should be exchanged have different lengths and no policy was chosen."""


class NoSite(BadInput):
    """A site filter matched no attention site of this denoiser."""


class EmptyWindow(BadInput):
    """An intervention's window holds no step of this run, so it would never act."""


class EmptyMask(BadInput):
    """A region's mask holds no cell of the latent grid."""


class Conflict(BadInput):
    """Two interventions of one session want the last word on the same thing."""


class BrokenFile(BadInput):
    """A file that unleak wrote, or one in its place, cannot be read back."""


class WrongEncoder(BadInput):
    """What was learned from one text encoder is applied to another."""


class NotFinite(UnleakError):
    """NaN or infinity where numbers were expected."""


class WorkerLost(UnleakError):
    """A worker of a cluster died and could not be replaced, or an input ended each that tried it."""


class UnsupportedModel(UnleakError):
    """The pipeline has no part that unleak needs."""

    exit_code = 4


class Unobservable(UnsupportedModel):
    """An attention module ran without `scaled_dot_product_attention`, so nothing could be seen."""


def choose(kind: str, name: T, among: Iterable[T]) -> T:
    """`name`, if it is one of the choices.

    Args:
        kind: what one of them is called: "repair", "pad".

    Raises:
        BadInput: it is none of them; the message names the nearest and all that there are.
    """
    known = list(among)
    if name not in known:
        near = difflib.get_close_matches(str(name), map(str, known), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise BadInput(f"no {kind} is called {name!r}{hint} Choose from {', '.join(map(str, known)) or 'nothing'}")
    return name


_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""Characters that are not seen but act: controls except newline and tab, direction marks, half surrogates, tags."""


def printable(text: object) -> str:
    r"""The text with every character that is not seen but acts written as JSON writes it: ``\u001b``.

    So what a file says cannot steer a terminal, or turn around what stands beside it. JSON text stays the same JSON.
    """
    return _CONTROLS.sub(lambda found: json.dumps(found[0])[1:-1], str(text))


REMEDIES = {
    errno.ENOSPC: "make room on the disk", errno.EDQUOT: "make room on the disk",
    errno.EMFILE: "allow more open files: ulimit -n", errno.ENFILE: "too many files are open on this machine",
    errno.EACCES: "give the permission, or choose another path", errno.EPERM: "choose another path",
    errno.EROFS: "choose a path that can be written", errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "name a file", errno.ENOTDIR: "name a folder", errno.ENOMEM: "free some memory",
    errno.EFBIG: "files may not grow so large here: ulimit -f",
}  # fmt: skip


def in_words(e: BaseException) -> tuple[int, str, str] | None:
    """Exit status, what kind of error, and what happened with its remedy; None for what nobody has foreseen.

    Foreseen are our own errors, those of the operating system, too little memory, a nesting too deep, text that is
    none, and a number too large.
    """
    kind = type(e).__name__
    if isinstance(e, UnleakError):
        return e.exit_code, kind, str(e)
    if isinstance(e, OSError) and e.errno is not None:
        what = f"{e.filename}: {e.strerror}" if e.filename else str(e.strerror)
        return 1, kind, f"{what}; {REMEDIES[e.errno]}" if e.errno in REMEDIES else what
    if isinstance(e, MemoryError) or "out of memory" in str(e) or "can't allocate memory" in str(e):
        return 1, "MemoryError", "there is not enough memory: draw fewer or smaller images, or --offload model"
    if isinstance(e, RecursionError):
        return 1, kind, "something that was given is nested too deeply"
    if isinstance(e, UnicodeError):
        return 2, "BadInput", f"something that was given is not valid UTF-8 text: {e}"
    if isinstance(e, OverflowError) or (isinstance(e, ValueError) and "integer string conversion" in str(e)):
        return 2, "BadInput", f"a number that was given is too large: {e}"
    return None

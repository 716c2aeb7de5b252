"""What every verb gives back: a result that prints, shows itself in a notebook, becomes plain data and saves itself.

A result knows its data; pages and pictures of it are made by the module that `Result.shown_by` names. The public face
of the package names it, so that no result imports what stands above it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from unleak.errors import BadInput
from unleak.files.atomic import write_atomic
from unleak.files.provenance import versions

MOST_LINES, WIDEST = 30, 200


def cut(line: str) -> str:
    """A line of at most `WIDEST` characters."""
    return line if len(line) <= WIDEST else line[: WIDEST - 3] + "..."


class Result:
    """What a verb gives back. A subclass names its `verb` and says `lines` and `data`.

    ``print(result)`` is at most 30 lines; a notebook shows the same with a picture; `to_dict` is plain data;
    ``save("x.html" | "x.json" | "folder/")`` writes it.
    """

    verb: ClassVar[str]
    shown_by: ClassVar[str]
    """The module with ``page(result)`` and ``notebook(result)`` (HTML) and ``pictures(result)`` (file name -> PNG)."""

    def lines(self) -> Iterable[str]:
        """What a person would say of it, the most important first; the first line is its title."""
        raise NotImplementedError

    def data(self) -> dict[str, Any]:
        """Plain data: what `json.dumps` takes."""
        raise NotImplementedError

    def views(self) -> Mapping[str, Any]:
        """Its pictures by kind, [S, H, W, 3] uint8 each, one for each of `seeds_of` the kind."""
        return {}

    def seeds_of(self, kind: str) -> Iterable[int]:
        """The seeds of one kind of `views`."""
        seeds: Iterable[int] = getattr(self, "seeds", ())
        return seeds

    def file_names(self) -> Any:
        """Of every kind of `views` the names of its files in the folder that `save` writes."""
        return {
            kind: [f"{kind.lower().replace(' ', '-')}-{seed}.png" for seed in self.seeds_of(kind)]
            for kind in self.views()
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data with the schema ``unleak/<verb>/1``; pictures are named as `save` to a folder names them."""
        return {"schema": f"unleak/{self.verb}/1", **self.data(), "versions": versions()}

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write a page for people (``x.html``), the data (``x.json``), or both with all pictures (``folder/``).

        Returns:
            The path. Every file is written whole or not at all; a page needs no other file.

        Raises:
            BadInput: another suffix, or the path cannot be written.
        """
        to, suffix = Path(path), Path(path).suffix.lower()
        if to.is_dir() or not suffix or str(path).endswith(("/", os.sep)):
            for name, png in self._shown_by().pictures(self).items():
                write_atomic(to / name, png)
            self.save(to / "result.json")
            self.save(to / "index.html")
        elif suffix == ".html":
            write_atomic(to, self._shown_by().page(self))
        elif suffix == ".json":
            write_atomic(to, self.to_json())
        else:
            raise BadInput(
                f"a result is not saved as {suffix!r}: write 'x.html' (a page), 'x.json' (data) or 'x/' (a folder with "
                "pictures, data and page)"
            )
        return to

    def __str__(self) -> str:
        lines = [cut(line) for line in "\n".join(self.lines()).splitlines()]
        if len(lines) > MOST_LINES:
            left = len(lines) - MOST_LINES + 1
            lines = [*lines[: MOST_LINES - 1], f"... and {left} more lines: save('x.html') or to_dict() has all"]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {next(iter(self.lines()), '')}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: `str` and one picture; no script, and every text escaped."""
        shown: str = self._shown_by().notebook(self)
        return shown

    def _shown_by(self) -> Any:
        return import_module(self.shown_by)

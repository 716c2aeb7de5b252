"""The page of the riskiest prompts of a file."""

from __future__ import annotations

from typing import Any

from unleak.report.pages import marked, render
from unleak.words.lint.lint_file import Summary


def _pieces(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The prompt with its items marked as `leak` or `ok`."""
    states = [(tuple(i["span"]), "leak" if i["risk"] >= 0.5 else "ok") for i in record["items"]]
    return marked(record["prompt"], states)


def pictures(summary: Summary) -> dict[str, bytes]:
    """None: nothing is drawn."""
    return {}


def sheet(summary: Summary) -> None:
    """None: nothing is drawn."""


def page(summary: Summary) -> str:
    """One self-contained HTML page of the riskiest prompts. No script needed."""
    rows = [{**r, "pieces": _pieces(r), "worst": max(r["items"], key=lambda i: i["risk"])} for r in summary.riskiest]
    return render("lint.html", settings=summary.header["settings"], s=summary, rows=rows)

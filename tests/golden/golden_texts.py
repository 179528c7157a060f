"""What the command and pytest print in this process, masked, and gathered under headings.

What differs between machines, versions and runs (durations, paths, sizes of differences) is masked.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).resolve().parent.parent.parent
VIEWS = [(columns, *more) for columns in (80, 120) for more in ((), ("-v",), ("-vv",))]


def command(*arguments: str, columns: int = 80) -> str:
    """What ``ckptcompat`` prints, and its exit code."""
    [entry] = entry_points(group="console_scripts", name="ckptcompat")
    return _captured(lambda: entry.load()(list(arguments)), columns)


def pytest_run(*arguments: str, columns: int = 80) -> str:
    """What pytest prints with this plugin and no other, and its exit code."""
    import pytest

    given = ["-p", "ckptcompat", "-p", "no:cacheprovider", "--capture=sys", *arguments]
    return _captured(lambda: int(pytest.main(given)), columns)


def _captured(run: Callable[[], int], columns: int) -> str:
    os.environ["COLUMNS"] = str(columns)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code: Any = run()
        except SystemExit as stop:
            code = stop.code or 0
    said = f"stderr:\n{err.getvalue()}" if err.getvalue() else ""
    return masked(f"{out.getvalue()}{said}exit code {code}\n")


def masked(text: str) -> str:
    """Without what is of this machine, of this run or of a release of torch, Python or pytest."""
    text = text.replace(str(Path.cwd()), "<folder>").replace(str(REPOSITORY), "<repository>")
    text = re.sub(r"=+ (.* in )[\d.]+s(?: \([\d:]+\))? =+", r"=== \1<time> ===", text)
    text = re.sub(r"^(\d+ \w+.* in )[\d.]+s$", r"\1<time>", text, flags=re.MULTILINE)
    text = re.sub(r"^platform .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^plugins: ckptcompat-\S+", "plugins: ckptcompat", text, flags=re.MULTILINE)
    text = re.sub(r'(?<= )(time|timestamp|hostname)="[^"]*"', r'\1="…"', text)
    text = re.sub(r"(\|(?:Δ|\\u0394)\| )(?:0(?![.\d])|[1-9]\S*?e-\d\d)", r"\1<small>", text)
    return re.sub(r"(<style>|<script>)(.+?)(</)", _digested, text, flags=re.DOTALL)


def _digested(match: re.Match[str]) -> str:
    return f"{match[1]}sha256 {hashlib.sha256(match[2].encode()).hexdigest()}{match[3]}"


def compact(text: str) -> str:
    """JSON with what is innermost on one line; its own layout is two blanks a level."""
    laid_out = "" if json.dumps(json.loads(text), indent=2) == text.rstrip("\n") else "in another layout:\n"
    for _ in range(2):
        text = re.sub(r"[\[{][^\[\]{}]*[\]}]", lambda match: re.sub(r"\n\s*", " ", match[0]), text)
    return laid_out + text


def by_tag(text: str) -> str:
    """Markup with a line for each tag that follows another."""
    return text.replace("><", ">\n<") + "\n"


def digest(path: Path) -> str:
    """The file's hash."""
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}, {path.stat().st_size} bytes\n"


class Sections:
    """Texts under headings; one that was there before is named, not repeated."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.headings: dict[str, str] = {}

    def add(self, heading: str, text: str) -> None:
        """Add a section, unless its text is an earlier one's."""
        body = f"(as {self.headings[text]})" if text in self.headings else text.rstrip("\n")
        self.headings.setdefault(text, heading)
        self.parts.append(f"### {heading}\n{body}\n")

    def run(self, *arguments: str, columns: int = 80) -> None:
        """Add what the command prints."""
        said = command(*arguments, columns=columns)
        if "--json" in arguments and said.startswith("{"):
            content, exit_code, number = said.rpartition("exit code")
            said = compact(content) + exit_code + number
        self.add(f"ckptcompat {' '.join(arguments)} ({columns} columns)", said)

    def __str__(self) -> str:
        return "\n".join(self.parts)

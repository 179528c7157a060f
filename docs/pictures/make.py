"""Make the pictures of the README from what pytest prints and writes today.

    python docs/pictures/make.py [--browser chromium]

``report.svg`` is the terminal in which the example fails without its recipe, ``page.png`` the page of
``--ckpt-report html:`` for a changed mixture of experts with 10,000 keys, known from a lock. It takes rich
(in the extra ``dev``) and a Chromium for the page; without one the page's picture stays as it is.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from io import StringIO
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COLUMNS = 80
WIDTH, HEIGHT = 1100, 1000
COMMAND = "pytest test_onet.py --ckpt net.pth"


def pytest(folder: Path, *arguments: str) -> str:
    """What a run of pytest prints on a terminal of 80 columns; the run must end with a failed test."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--no-header", "--color=yes", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": str(COLUMNS), "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 1:
        raise SystemExit(f"the run was to fail, and ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


def failing_report(folder: Path) -> str:
    """The example, without the line that its comment asks to take out."""
    for name in ("onet.py", "net.pth"):
        shutil.copy(ROOT / "examples/onet" / name, folder)
    test = (ROOT / "examples/onet/test_onet.py").read_text(encoding="utf-8")
    without = re.sub(r"    recipe=.*\n", "", test)
    if without == test:
        raise SystemExit("the example has no recipe= to take out")
    (folder / "test_onet.py").write_text(without, encoding="utf-8")
    return pytest(folder, "test_onet.py", "--ckpt=net.pth", "--ckpt-device=cpu")


def draw_terminal(printed: str, to: Path) -> None:
    """An SVG of the text in its colours, in fonts that the reader has."""
    console = Console(width=COLUMNS, record=True, file=StringIO())
    console.print(f"[bold]$ {COMMAND}[/bold]", highlight=False)
    for line in printed.splitlines()[:-1]:  # the last one has the time that it took
        text = Text.from_ansi(line)
        for piece in text.divide(range(COLUMNS, len(text), COLUMNS)):  # as a terminal wraps
            console.print(piece, soft_wrap=True)
    own_fonts = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title="", code_format=own_fonts, unique_id="report")
    to.write_text(re.sub(r"[ \t]+$", "", picture, flags=re.MULTILINE), encoding="utf-8")


def large_page(folder: Path) -> Path:
    """The page for a model of 10,000 keys whose heads, vocabulary and depth were changed."""
    shutil.copy(HERE / "experts.py", folder)
    subprocess.run(
        [sys.executable, "-m", "pytest_ckptcompat", "lock", "experts:Released", "-o", "released.ckpt.json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (folder / "ckptcompat.toml").write_text(
        '[[check]]\nname = "experts"\nckpt = "released.ckpt.json"\nmodel = "experts:Today"\n',
        encoding="utf-8",
    )
    pytest(folder, "ckptcompat.toml", "--ckpt-report=html:page.html")
    return folder / "page.html"


def photograph(page: Path, browser: str, to: Path) -> None:
    """A PNG of the top of a page."""
    subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--user-data-dir={page.parent / 'browser'}", f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={to}", page.as_uri(),
        ],
        check=True, stderr=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--browser", default=shutil.which("chromium") or shutil.which("google-chrome"), help="a Chromium"
    )
    browser = parser.parse_args().browser
    with tempfile.TemporaryDirectory() as name:
        draw_terminal(failing_report(Path(name)), HERE / "report.svg")
    if not browser:
        sys.stderr.write("no Chromium: page.png stays as it is\n")
        return
    with tempfile.TemporaryDirectory() as name:
        photograph(large_page(Path(name)), browser, HERE / "page.png")


if __name__ == "__main__":
    main()

"""What a person sees who waits for a large checkpoint in a terminal, and that nobody else sees anything."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from pytest_ckptcompat.files import progress
from pytest_ckptcompat.files.progress import Progress

SUITE = """
import sys
import pytest, torch
from pytest_ckptcompat.files import progress
progress._AFTER = progress._EVERY = 0
if "--no-tqdm" in {arguments}:
    sys.modules["tqdm"] = None

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        print("built")
        self.layers = torch.nn.ModuleList(torch.nn.Linear(500, 500) for _ in range(4))

    def forward(self, x):
        return self.layers[0](x)

@pytest.mark.ckpt_compat(model=Net, ckpt="net.pth")
def test_net(ckpt_model): ...

def test_other(): ...
"""


@pytest.fixture
def folder(pytester):
    state_dict = {
        f"layers.{layer}.{name}": torch.rand(*shape)
        for layer in range(4)
        for name, shape in (("weight", (500, 500)), ("bias", (500,)))
    }
    torch.save(state_dict, pytester.path / "net.pth")
    (pytester.path / "pytest.ini").write_text("[pytest]\n")
    return pytester.path


def pytest_in(folder, *options, tqdm=False):
    """What a run of pytest writes to a terminal."""
    arguments = [] if tqdm else ["--no-tqdm"]
    (folder / "test_net.py").write_text(SUITE.format(arguments=arguments))
    inherited = {name: value for name, value in os.environ.items() if name not in ("CI", "RANK")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    reader, writer = pty.openpty()
    with subprocess.Popen(
        command,
        cwd=folder,
        stdout=writer,
        stderr=writer,
        env={**inherited, "COLUMNS": "80", "PY_COLORS": "0", "OMP_NUM_THREADS": "1"},
    ) as process:
        os.close(writer)
        written = b""
        try:
            while piece := os.read(reader, 65536):
                written += piece
        except OSError:  # the other end of the terminal is closed
            pass
        os.close(reader)
    text = written.decode()
    assert process.returncode == 0, text
    return text


def test_a_person_sees_how_far_it_is(folder):
    text = pytest_in(folder, "-v")
    assert "\rnet.pth: 1.0 MB of 4.0 MB" in text
    shown = text.rindex("\rnet.pth: 4.0 MB of 4.0 MB")
    wiped, _, after = text[shown + 1 :].partition("\r")[2].partition("\r" + " " * 79 + "\r")
    assert wiped == "" or set(wiped) <= {" ", "\r"}
    assert "2 passed" in after
    assert "built" not in text  # what the model prints stays captured


def test_tqdm_draws_it_where_it_is_installed(folder):
    pytest.importorskip("tqdm")
    text = pytest_in(folder, tqdm=True)
    assert "\rnet.pth: 100%|" in text
    assert "4.01M/4.01M" in text
    assert "2 passed" in text


def test_workers_show_nothing(folder):
    assert "net.pth:" not in pytest_in(folder, "-n", "1")


def test_nothing_is_shown_in_a_file_or_pipe(folder, monkeypatch, pytester):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(progress, "_AFTER", 0)
    monkeypatch.setattr(progress, "_EVERY", 0)
    pytester.makepyfile(test_net=SUITE.format(arguments=[]))
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=2)
    assert "net.pth:" not in result.stdout.str() + result.stderr.str()


class Screen:
    def __init__(self):
        self.shown = []

    def watched(self):
        return True

    def show(self, text):
        self.shown.append(text)


@pytest.fixture
def screen(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(progress, "_AFTER", 0)
    monkeypatch.setattr(progress, "_EVERY", 0)
    screen = Screen()
    with progress.shown_on(screen):
        yield screen


def test_the_line_stays_until_the_outermost_is_left(screen):
    with Progress("net.pth", 2000) as whole:
        for _ in range(3):
            with whole as part:
                part.advance(1000)
    assert screen.shown == ["net.pth: 1.0 kB of 2.0 kB", "net.pth: 2.0 kB of 2.0 kB", "net.pth: 3.0 kB", ""]


def test_what_is_read_quickly_is_never_shown(screen, monkeypatch):
    monkeypatch.setattr(progress, "_AFTER", 60)
    with Progress("net.pth", 2000) as whole:
        whole.advance(1000)
    assert screen.shown == []


def test_nobody_watches_in_continuous_integration(screen, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with Progress("net.pth", 2000) as whole:
        whole.advance(1000)
    assert screen.shown == []


def test_it_fits_the_terminal(screen, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    with Progress("a" * 100, 2000) as whole:
        whole.advance(1000)
    assert screen.shown == ["a" * 19, ""]


def test_the_screen_is_given_back(screen):
    other = Screen()
    with pytest.raises(ZeroDivisionError), progress.shown_on(other):
        1 / 0  # noqa: B018
    with Progress("net.pth", 1) as whole, nullcontext():
        whole.advance(1)
    assert screen.shown
    assert not other.shown

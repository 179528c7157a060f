"""A secret in a path, planted in every way there is, is searched for in everything that a run leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from http_server import Served, serve
from torch import nn

from pytest_ckptcompat import CheckpointError, check, open_checkpoint
from pytest_ckptcompat.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("aiohttp")

SECRET = "S3CR3T"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    torch.save(nn.Linear(3, 2).state_dict(), folder / "net.pth")
    with serve(folder) as served:
        yield served


READ = {
    "user": "http://user:S3CR3T@{host}/net.pth",
    "token as user": "http://S3CR3T@{host}/net.pth",
    "signature": "http://{host}/net.pth?X-Amz-Signature=S3CR3T&X-Amz-Date=1/2@3",
    "fragment": "http://{host}/net.pth#access_token=S3CR3T",
    "all": "http://user:S3CR3T@{host}/net.pth?sig=S3CR3T#t=S3CR3T",
    "escaped": "http://user:pa%40S3CR3T@{host}/net.pth",
    "at": "http://user:pa@S3CR3T@{host}/net.pth",
}
"""What can be read."""

NOT_READ = {
    "missing": "http://user:S3CR3T@{host}/none.pth?sig=S3CR3T",
    "nobody there": "http://user:S3CR3T@127.0.0.1:9/net.pth?sig=S3CR3T",
    "slash": "http://user:pa/S3CR3T@{host}/net.pth",
    "hash": "http://user:pa#S3CR3T@{host}/net.pth",
    "question": "http://user:pa?S3CR3T@{host}/net.pth",
    "all of them": "http://user:p@a/b#S3CR3T@{host}/net.pth",
    "digits": "http://user:12/S3CR3T@{host}/net.pth",
    "no host": "http://user:S3CR3T/net.pth",
    "pathlib": "http:/user:S3CR3T@{host}/net.pth?sig=S3CR3T",
    "chain": "simplecache::http://user:S3CR3T@{host}/none.pth?sig=S3CR3T",
    "archive": "zip://net.pth::http://user:S3CR3T@{host}/none.zip?sig=S3CR3T",
    "folder": "http://user:S3CR3T@{host}/none/?sig=S3CR3T",
    "glob": "http://user:S3CR3T@{host}/none*.pth?sig=S3CR3T",
    "protocol": "nosuch://user:S3CR3T@{host}/net.pth?sig=S3CR3T",
    "bucket": "memory://key:S3CR3T@bucket/net.pth",
    "local": "file://net.pth?sig=1",
    "in front": " http://user:S3CR3T@{host}/net.pth?sig=S3CR3T",
    "quoted": "http://user%3AS3CR3T%40{host}/net.pth%3Fsig%3DS3CR3T",
    "commit": "git:http://user:S3CR3T@{host}/net.pth?sig=S3CR3T",
}
"""What can't be."""


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_ckptcompat.files.attempts.WAITS", (0.01,))


def urls(forms: dict[str, str], server: Served) -> dict[str, str]:
    return {name: form.format(host=server.url.removeprefix("http://")) for name, form in forms.items()}


class Wider(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 4)


@pytest.mark.parametrize("name", [*READ, *NOT_READ])
def test_python(name: str, server: Served) -> None:
    url = urls(READ | NOT_READ, server)[name]
    report = check(Wider, url, device="none")
    assert not report.ok
    assert SECRET not in f"{report}{report.verdict}{report.to_json()}{report.to_markdown()}{report!r}"
    for arguments in ({"loader": torch.load}, {"recipe": url}, {"source_model": url}, {"optimizer": url}):
        try:
            said = str(check(Wider, url, device="none", **arguments))
        except ValueError as error:
            said = str(error)
        assert SECRET not in said, arguments
    if name in READ:
        assert "net.pth" in repr(open_checkpoint(url))
        assert report.mismatched
    else:
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(url)
        assert SECRET not in str(error.value)
        assert [found.rule for found in report.findings] == ["no-checkpoint"]


@pytest.mark.parametrize("name", [*READ, *NOT_READ])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_command(
    name: str,
    server: Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models_of_secrets.py").write_text(
        "from torch import nn\ndef Net(): return nn.Linear(3, 4)\n"
    )
    (tmp_path / "grow.toml").write_text('[[recipe]]\nop = "tile"\nkey = "*"\ndim = 0\n')
    url = urls(READ | NOT_READ, server)[name]
    for arguments in (
        ["show", url],
        ["show", url, "--json"],
        ["diff", url, "--against", url],
        ["check", url, "models_of_secrets:Net", "--device", "none"],
        ["check", url, "models_of_secrets:Net", "--device", "none", "--json"],
        ["check", "models_of_secrets:Net", url],
        ["check", url, url],
        ["check", url, "models_of_secrets:Net", "--recipe", url],
        ["lock", url, "-o", "net.ckpt.json"],
        ["lock", url, "--sha256", "-o", "net2.ckpt.json"],
        ["apply", url, "models_of_secrets:Net", "--recipe", "grow.toml", "-o", "new.pth"],
        ["apply", url, "models_of_secrets:Net", "--recipe", "grow.toml", "-o", url],
        ["show", url, url],
        ["show", "--limit", url, url],
    ):
        try:
            code = main(arguments)
        except SystemExit as stop:
            code = stop.code
        said = "".join(capsys.readouterr())
        assert SECRET not in said.replace("\n", ""), arguments[0]
        assert said.strip() or code == 0
    found = {each: each.read_text("latin-1") for each in tmp_path.rglob("*") if each.is_file()}
    assert not [each.name for each, text in found.items() if SECRET in text or SECRET in each.name]
    assert (tmp_path / "net.ckpt.json" in found) == (name in READ)


TESTS = """
import os
import pytest
from models_of_secrets import Net
from pytest_ckptcompat import load

URLS = os.environ["URLS"].splitlines()

for number, url in enumerate(URLS):
    @pytest.mark.ckpt_compat(model=Net, ckpt=url, device="none")
    def test(ckpt_report):
        pass
    globals()[f"test_{number}"] = test
del test

@pytest.mark.ckpt_compat(model=Net, device="none")
def test_all(ckpt_report):
    pass

def test_user_code(ckpt_path, ckpt):
    assert len(ckpt) == 3

@pytest.mark.parametrize("number", range(len(URLS)))
def test_user_load(number):
    load(Net(), URLS[number])

def test_user_check(ckpt_path, ckpt_check):
    assert ckpt_check(Net, ckpt_path, device="none")
"""


@pytest.mark.parametrize("workers", [(), ("-n1",)])
def test_a_run_of_pytest(
    server: Served, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    pytester.makepyfile(models_of_secrets="from torch import nn\ndef Net(): return nn.Linear(3, 4)\n")
    pytester.makepyfile(TESTS)
    pytester.makeconftest("from pytest_ckptcompat.files import attempts\nattempts.WAITS = (0.01,)\n")
    pytester.makefile(".toml", ckptcompat='[[check]]\nname = "file"\nmodel = "models_of_secrets:Net"\n')
    monkeypatch.setenv("PYTEST_ADDOPTS", "")  # with pytest's cache, which holds test ids
    monkeypatch.setenv("URLS", "\n".join(urls(READ | NOT_READ, server).values()))
    result = pytester.runpytest_inprocess(
        *(f"--ckpt={url}" for url in urls(READ, server).values()),
        "-vv", "-rA", "--showlocals", "--log-level=DEBUG", "--durations=0", "--junitxml=o.xml",
        "--ckpt-report=json:o.json", "--ckpt-report=markdown:o.md", "--ckpt-report=html:o.html",
        *(workers or ["--setup-show"]),
    )  # fmt: skip
    counts = result.parseoutcomes()
    assert counts.keys() == {"failed"}
    text = result.stdout.str()  # a traceback ends where the test called, and shows no arguments of others
    assert text.count(">       load(Net(), URLS[number])") == len(READ | NOT_READ)
    assert "_pytest/runner.py" not in text
    assert counts["failed"] == 2 * len(READ | NOT_READ) + 4 * len(READ)
    shown = [line for line in (*result.outlines, *result.errlines) if SECRET in line]
    assert not shown
    left = [path for path in pytester.path.rglob("*") if path.is_file()]
    assert not [path for path in left if SECRET in path.read_text("latin-1")]
    assert not [path for path in left if SECRET in path.name]
    written = {path.name: path.read_text("latin-1") for path in left}
    assert all("net.pth" in written[name] for name in ("o.xml", "o.json", "o.md", "o.html", "lastfailed"))


@pytest.mark.parametrize("name", NOT_READ)
def test_a_checkpoint_that_is_not_there(
    name: str, server: Served, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pytester.path)
    result = pytester.runpytest_inprocess(f"--ckpt={urls(NOT_READ, server)[name]}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert not [line for line in (*result.outlines, *result.errlines) if SECRET in line]
    assert len([line for line in result.errlines if line.strip()]) <= 2

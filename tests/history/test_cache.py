from __future__ import annotations

import json
import multiprocessing
import os
import time

import pytest

from pytest_ckptcompat.history import cache


def never():
    raise AssertionError("asked again")


def test_an_answer_is_kept(tmp_path):
    folder = tmp_path / ".pytest_cache"
    assert cache.answer(folder, {"a": 1}, lambda: {"b": [2.5]}) == {"b": [2.5]}
    assert cache.answer(folder, {"a": 1}, never) == {"b": [2.5]}
    assert cache.answer(folder, {"a": 2}, lambda: {"b": 3}) == {"b": 3}
    assert (folder / ".gitignore").read_text().endswith("*\n")


def test_nothing_is_kept_without_a_folder():
    assert cache.answer(None, {"a": 1}, lambda: {"b": 1}) == {"b": 1}
    assert cache.answer(None, {"a": 1}, lambda: {"b": 2}) == {"b": 2}


def test_a_failure_is_not_kept(tmp_path):
    def fail():
        raise ValueError("once")

    with pytest.raises(ValueError, match="once"):
        cache.answer(tmp_path / "c", {}, fail)
    assert cache.answer(tmp_path / "c", {}, lambda: {"b": 1}) == {"b": 1}


def test_another_installation_asks_again(tmp_path, monkeypatch):
    packages = tmp_path / "site"
    packages.mkdir()
    monkeypatch.syspath_prepend(str(packages))
    cache.answer(tmp_path / "c", {}, lambda: {"b": 1})
    (packages / "timm-1.0.dist-info").mkdir()
    assert cache.answer(tmp_path / "c", {}, lambda: {"b": 2}) == {"b": 2}


def test_an_edited_dependency_asks_again(tmp_path, monkeypatch):
    source, packages, folder = tmp_path / "dependency", tmp_path / "site", tmp_path / "c"
    source.mkdir()
    (source / "layers.py").write_text("WIDTH = 1")
    about = packages / "layers-1.0.dist-info"
    about.mkdir(parents=True)
    url = {"url": source.as_uri(), "dir_info": {"editable": True}}
    (about / "direct_url.json").write_text(json.dumps(url))
    monkeypatch.syspath_prepend(str(packages))
    for root in (None, tmp_path / "repository", source):
        cache.answer(folder, {"root": str(root)}, lambda: {"b": 1}, root)
        assert cache.answer(folder, {"root": str(root)}, never, root) == {"b": 1}
    os.utime(source / "layers.py", ns=(0, 12345))
    for root, number in ((None, 2), (tmp_path / "repository", 2), (source, 1)):
        assert cache.answer(folder, {"root": str(root)}, lambda: {"b": 2}, root) == {"b": number}
    for text in ("", "[]", '{"dir_info": 3}', '{"dir_info": {"editable": true}, "url": 3}'):
        (about / "direct_url.json").write_text(text)
        assert cache.answer(folder, {"text": text}, lambda: {"b": 3}) == {"b": 3}


def test_a_damaged_answer_is_made_again(tmp_path):
    cache.answer(tmp_path, {}, lambda: {"b": 1})
    (file,) = (tmp_path / "d/ckptcompat-git").glob("*.json")
    for text in ("", "[1]", "{"):
        file.write_text(text)
        assert cache.answer(tmp_path, {}, lambda: {"b": 2}) == {"b": 2}


def test_a_cache_that_can_not_be_written_only_warns(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="can't be written, and git: is slower without it"):
        assert cache.answer(tmp_path / "file", {}, lambda: {"b": 1}) == {"b": 1}


def test_the_oldest_answers_go(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_MOST", 3)
    for number in range(5):
        cache.answer(tmp_path, {"n": number}, lambda number=number: {"b": number})
        for age, file in enumerate(
            sorted((tmp_path / "d/ckptcompat-git").glob("*.json"), key=os.path.getmtime)
        ):
            os.utime(file, (1000 + age, 1000 + age))
    assert len(list((tmp_path / "d/ckptcompat-git").glob("*.json"))) == 3
    assert cache.answer(tmp_path, {"n": 4}, never) == {"b": 4}


def _ask(folder, log, ready):
    ready.wait()  # all make the folder at once

    def slow():
        with open(log, "a") as file:  # noqa: PTH123
            file.write("asked\n")
        time.sleep(0.3)
        return {"b": 1}

    assert cache.answer(folder, {"a": 1}, slow) == {"b": 1}


def test_processes_ask_once(tmp_path):
    start = multiprocessing.get_context("fork")
    ready = start.Barrier(4)
    workers = [start.Process(target=_ask, args=(tmp_path / "c", tmp_path / "log", ready)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "log").read_text() == "asked\n"


def test_the_nearest_cache(tmp_path):
    deep = tmp_path / "repo/a/b"
    deep.mkdir(parents=True)
    root = tmp_path / "repo"
    (tmp_path / ".pytest_cache").mkdir()
    assert cache.nearest(deep, root) == root / ".pytest_cache"
    (root / "a/.pytest_cache").mkdir()
    assert cache.nearest(deep, root) == root / "a/.pytest_cache"

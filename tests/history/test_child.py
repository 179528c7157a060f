from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from repositories import Repository

from pytest_ckptcompat.history import child
from pytest_ckptcompat.history.child import ChildError, ask, search_path
from pytest_ckptcompat.history.reference import Reference, resolve
from pytest_ckptcompat.history.tree import exported

JOB = """
import model
def answer(arguments):
    return {"value": model.VALUE, "given": arguments} | model.more()
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repo")
    made.write(job=JOB)
    monkeypatch.chdir(made.folder)
    monkeypatch.setattr(sys, "path", [str(made.folder), *sys.path])
    return made


def asked(repository, arguments=None, ref="HEAD", timeout=20.0):
    commit = resolve(Reference(ref), repository.folder)
    with exported(commit) as tree:
        return ask(commit, tree, "job", arguments or {}, timeout)


def model(value, more="{}", before=""):
    return f"{before}\nVALUE = {value!r}\ndef more():\n    return {more}\n"


def test_the_modules_of_the_commit_answer(repository):
    repository.commit(model=model(1))
    repository.commit(model=model(2))
    repository.write(model=model(3))
    assert asked(repository, {"a": [1, None]}, "HEAD~1") == {"value": 1, "given": {"a": [1, None]}}
    assert asked(repository)["value"] == 2


@pytest.mark.parametrize("layout", ["src", "lib/python"])
def test_a_folder_of_sources(repository, layout, monkeypatch):
    (repository.folder / "job.py").unlink()
    repository.put(f"{layout}/job.py", JOB)
    repository.put(f"{layout}/model.py", model(1))
    repository.commit()
    repository.put(f"{layout}/model.py", model(2))
    monkeypatch.setattr(sys, "path", [str(repository.folder / layout), *sys.path[1:]])
    assert asked(repository)["value"] == 1


def test_the_current_folder_and_the_environment(repository, monkeypatch):
    more = "{'cwd': __import__('os').getcwd(), 'environment': dict(__import__('os').environ)}"
    repository.put("deep/notes.txt", "here")
    repository.commit(model=model(1, more))
    monkeypatch.chdir("deep")
    cleared = ("GIT_DIR", "PYTEST_ADDOPTS", "PYTHONWARNINGS", "COVERAGE_PROCESS_START", "PYTHONPATH")
    for name in (*cleared, "GIT_CONFIG_COUNT", "MINE"):
        monkeypatch.setenv(name, "0")
    found = asked(repository)
    assert Path(found["cwd"]).name == "deep"
    assert not Path(found["cwd"]).is_relative_to(repository.folder)
    assert not set(cleared) & set(found["environment"])
    assert found["environment"]["MINE"] == found["environment"]["GIT_CONFIG_COUNT"] == "0"
    assert found["environment"]["CUDA_VISIBLE_DEVICES"] == ""


def test_what_the_code_prints_stays_apart(repository, capfd):
    repository.commit(model=model(1, before="import sys; print('noise'); print('more', file=sys.stderr)"))
    assert asked(repository)["value"] == 1
    assert capfd.readouterr() == ("", "")


def test_files_that_an_import_writes_stay_in_the_tree(repository):
    before = (
        "import pathlib; pathlib.Path(__file__).with_name('made.txt').write_text('x'); open('here.txt', 'w')"
    )
    repository.commit(model=model(1, before=before))
    state = repository.state()
    assert asked(repository)["value"] == 1
    assert repository.state() == state


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("import os; os._exit(3)", "ended with exit code 3 and gave no answer"),
        (
            "import sys; sys.exit('enough')",
            "ended with exit code 1 and gave no answer; its last line: enough",
        ),
        ("raise ValueError('bad\\x1b[31m')", r"its last line: ValueError: bad\\x1b\[31m"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        (
            "import nothing_of_this_name",
            "its last line: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
    ],
)
def test_a_child_without_an_answer(repository, before, told):
    repository.commit(model=model(1, before=before))
    with pytest.raises(ChildError, match=told):
        asked(repository)


def test_an_error_that_the_job_reports(repository):
    repository.commit(model=model(1, "{'error': 'no such model'}"))
    with pytest.raises(ChildError, match=r"^no such model$"):
        asked(repository)


def test_time_is_up_for_all_that_was_started(repository, tmp_path):
    beat = tmp_path / "beat"
    loop = f"import time, pathlib\nwhile True: pathlib.Path({str(beat)!r}).write_text(str(time.time())); time.sleep(0.02)"
    before = (
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {loop!r}]); time.sleep(60)"
    )
    repository.commit(model=model(1, before=before))
    began = time.monotonic()
    with pytest.raises(ChildError, match="did not finish within 1 s: raise the ini key ckpt_git_timeout"):
        asked(repository, timeout=1.0)
    assert time.monotonic() - began < 10
    until(lambda: stands_still(beat))


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_process_that_asked(repository, tmp_path, end):
    beat, folder = tmp_path / "beat", tmp_path / "temporary"
    folder.mkdir()
    loop = f"import time, pathlib\nwhile True: pathlib.Path({str(beat)!r}).write_text(str(time.time())); time.sleep(0.02)"
    repository.commit(model=loop)
    asking = f"""
import sys; sys.path.insert(0, {str(Path(child.__file__).parents[2])!r})
from pytest_ckptcompat.history.child import ask
from pytest_ckptcompat.history.reference import Reference, resolve
from pytest_ckptcompat.history.tree import exported
from pathlib import Path
commit = resolve(Reference("HEAD"), Path.cwd())
with exported(commit) as tree:
    ask(commit, tree, "job", {{}})
"""
    process = subprocess.Popen([sys.executable, "-c", asking], env=os.environ | {"TMPDIR": str(folder)})
    until(beat.exists)
    process.send_signal(end)
    process.wait()
    until(lambda: not list(folder.iterdir()))
    until(lambda: stands_still(beat))


def stands_still(beat):
    last = beat.read_text()
    time.sleep(0.2)
    return beat.read_text() == last


def until(holds, seconds=20):
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)


def test_threads_that_go_on_do_not_keep_it(repository):
    before = "import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()"
    repository.commit(model=model(1, before=before))
    assert asked(repository, timeout=20.0)["value"] == 1


def test_todays_modules_are_never_taken_for_those_of_the_commit(repository, monkeypatch):
    repository.commit(model=model(1, before="import helper"))
    repository.put(".gitignore", "new/\n")
    repository.put("new/helper.py", "X = 1\n")
    monkeypatch.setattr(sys, "path", [str(repository.folder), str(repository.folder / "new"), *sys.path[1:]])
    with pytest.raises(ChildError, match="No module named 'helper'"):
        asked(repository)
    folder = str(repository.folder / "new")
    repository.commit(model=model(1, before=f"import sys; sys.path.append({folder!r}); import helper"))
    with pytest.raises(ChildError, match=r"helper was imported from today's new/helper\.py"):
        asked(repository)


def test_paths_of_the_environment_lead_into_the_commit(repository, monkeypatch):
    more = "{'text': open(__import__('os').environ['PROJECT_ROOT'] + '/conf/net.yaml').read()}"
    repository.put("conf/net.yaml", "outputs: 4")
    repository.commit(model=model(1, more))
    repository.put("conf/net.yaml", "outputs: 6")
    monkeypatch.setenv("PROJECT_ROOT", str(repository.folder))
    assert asked(repository)["text"] == "outputs: 4"


def test_todays_files_are_never_taken_for_those_of_the_commit(repository):
    repository.put("b.yaml", "outputs: 4")
    repository.put(".gitignore", "data.txt")
    before = f"for name in ('b.yaml', 'data.txt'): open({str(repository.folder)!r} + '/' + name).read()"
    repository.commit(model=model(1, before=before))
    repository.put("data.txt", "what git ignores is the same on both sides")
    assert asked(repository)["value"] == 1
    repository.put("b.yaml", "outputs: 6")
    with pytest.raises(ChildError, match=r"its code read today's b\.yaml, which it names by its whole path"):
        asked(repository)


def test_code_that_looks_for_its_repository_finds_that_of_the_commit(repository):
    before = (
        "import pathlib, subprocess\n"
        "assert (pathlib.Path(__file__).parent / '.git').exists()\n"
        "said = subprocess.run(['git', 'log', '--format=%H'], capture_output=True, text=True, check=True).stdout\n"
        "subprocess.run(['git', 'update-ref', 'refs/heads/new', 'HEAD'], check=True)"
    )
    sha = repository.commit(model=model(1, "{'log': said.split()}", before=before))
    state = repository.state()
    assert asked(repository)["log"] == [sha]
    assert repository.state() == state


def test_an_editable_install_by_a_finder(repository, tmp_path, monkeypatch):
    """As setuptools makes them: a finder with a table, put in place as the interpreter starts."""
    repository.put("src/pkg/__init__.py", "VALUE = 1\n")
    repository.commit(model="from pkg import VALUE\ndef more():\n    return {}\n")
    repository.put("src/pkg/__init__.py", "VALUE = 2\n")
    site = tmp_path / "site"
    site.mkdir()
    (site / "__editable___pkg_1_0_finder.py").write_text(
        f"""
import sys
from importlib.util import spec_from_file_location
from pathlib import Path
MAPPING = {{"pkg": {str(repository.folder / "src/pkg")!r}}}
class _EditableFinder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name in MAPPING:
            return spec_from_file_location(name, Path(MAPPING[name]) / "__init__.py")
sys.meta_path.append(_EditableFinder)
"""
    )
    (site / "sitecustomize.py").write_text("import __editable___pkg_1_0_finder\n")
    kept = child._environment
    monkeypatch.setattr(child, "_environment", lambda *places: kept(*places) | {"PYTHONPATH": str(site)})
    assert asked(repository)["value"] == 1


def test_the_search_path(tmp_path):
    root, tree = tmp_path / "repo", tmp_path / "tree"
    for folder in (
        root / "src",
        root / "new",
        root / ".venv/lib/site-packages",
        tree / "src",
        tmp_path / "elsewhere",
    ):
        folder.mkdir(parents=True)
    elsewhere = str(tmp_path / "elsewhere")
    found = search_path(root, tree, [str(root), str(root / "src"), str(root / "new"), elsewhere])
    assert list(found) == [str(tree), str(tree / "src"), elsewhere]


def test_packages_installed_inside_the_working_tree_stay(tmp_path, monkeypatch):
    root, tree = tmp_path / "repo", tmp_path / "tree"
    packages = root / ".venv/lib/python3/site-packages"
    packages.mkdir(parents=True)
    tree.mkdir()
    monkeypatch.setattr(sys, "path", [str(root), str(packages)])
    assert list(search_path(root, tree, sys.path)) == [str(tree), str(packages)]


def test_no_folder_is_left(repository, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    repository.commit(model=model(1))
    repository.commit(model=model(1, "{'error': 'failed'}"))
    asked(repository, ref="HEAD~1")
    with pytest.raises(ChildError):
        asked(repository)
    assert not list((tmp_path / "temporary").iterdir())

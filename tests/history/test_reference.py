from __future__ import annotations

import os

import pytest
from repositories import Repository

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.files.paths import is_reference
from pytest_ckptcompat.history import reference
from pytest_ckptcompat.history.reference import Reference, resolve, shown


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repo")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git:main", Reference("main")),
        ("git:origin/main...", Reference("origin/main", merge_base=True)),
        ("git:HEAD~1#model:Net", Reference("HEAD~1", model="model:Net")),
        ("git:v1...#pkg.model:Net.small", Reference("v1", merge_base=True, model="pkg.model:Net.small")),
        ("git:fix#12", Reference("fix#12")),
        ("git:fix#12#model:Net", Reference("fix#12", model="model:Net")),
        ("git::/fix#model:Net", Reference(":/fix", model="model:Net")),
        ("git:main#model", Reference("main#model")),
    ],
)
def test_what_a_reference_says(text, expected):
    assert is_reference(text)
    assert Reference.parse(text) == expected


@pytest.mark.parametrize("text", ["git:", "git:#model:Net", "git:...", "git: ", "git:a\nb", "git:a\0b"])
def test_a_reference_without_a_commit(text):
    with pytest.raises(CheckpointError, match="names no commit: write git:REF"):
        Reference.parse(text)


def test_commits(repository):
    first, second = repository.commit(a="1"), repository.commit(a="2")
    for ref, expected in (
        ("HEAD", second),
        ("main~1", first),
        (first[:8], first),
        ("main^{/change}", second),
    ):
        assert resolve(Reference(ref), repository.folder).sha == expected
    (repository.folder / "deep").mkdir()
    found = resolve(Reference("HEAD"), repository.folder / "deep")
    assert found.repository == repository.folder.resolve()
    assert found.short == second[:10]


def test_an_annotated_tag_is_its_commit(repository):
    sha = repository.commit(a="1")
    repository.git("tag", "-a", "v1", "-m", "one")
    assert resolve(Reference("v1"), repository.folder).sha == sha


def test_the_merge_base(repository):
    base = repository.commit(a="1")
    repository.git("checkout", "-q", "-b", "topic")
    repository.commit(a="2")
    repository.git("checkout", "-q", "main")
    repository.commit(b="3")
    repository.git("checkout", "-q", "topic")
    assert resolve(Reference.parse("git:main..."), repository.folder).sha == base


def test_no_common_commit(repository):
    repository.commit(a="1")
    repository.git("checkout", "-q", "--orphan", "other")
    repository.commit(a="2")
    with pytest.raises(CheckpointError, match=r"git:main\.\.\.: HEAD and main have no common commit"):
        resolve(Reference.parse("git:main..."), repository.folder)


@pytest.mark.parametrize("ref", ["nonsense", "--help", "-h", "HEAD~99", "--output=x", "a b"])
def test_no_such_commit(repository, ref):
    repository.commit(a="1")
    with pytest.raises(CheckpointError, match="git finds no commit"):
        resolve(Reference(ref), repository.folder)
    assert not list(repository.folder.glob("x*"))


@pytest.mark.parametrize(
    ("ref", "told"),
    [
        ("HEAD:a.py", "it is a file. The commit is git:HEAD"),
        (
            "v1..HEAD",
            r"it is a range. One commit is meant: git:v1, or git:v1\.\.\. for the commit where HEAD",
        ),
        ("v1...main", "it is a range"),
        ("v1..", "it is a range"),
        ("^v1", ""),
        ("HEAD^@", ""),
        ("HEAD#model.Net", r"name a model of it as git:HEAD#package\.module:name"),
    ],
)
def test_what_is_not_one_commit(repository, ref, told):
    repository.commit(a="1")
    repository.git("tag", "v1")
    repository.commit(a="2")
    with pytest.raises(CheckpointError, match=rf"git finds no commit '.*' in .*{told}"):
        resolve(Reference(ref), repository.folder)


def test_no_commit_yet(repository):
    with pytest.raises(CheckpointError, match=r"there is no commit yet in .*: commit first"):
        resolve(Reference("HEAD"), repository.folder)


def test_a_branch_of_a_remote_that_was_meant(repository, tmp_path):
    repository.commit(a="1")
    repository.git("branch", "release")
    repository.git("clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    clone = Repository.__new__(Repository)
    clone.folder = tmp_path / "clone"
    with pytest.raises(CheckpointError, match=r"did you mean git:origin/release\?"):
        resolve(Reference("release"), clone.folder)
    with pytest.raises(CheckpointError, match="fetch it: git fetch origin future"):
        resolve(Reference("origin/future"), clone.folder)


def test_a_shallow_clone(repository, tmp_path):
    repository.commit(a="1")
    repository.commit(a="2")
    repository.git("clone", "-q", "--depth", "1", f"file://{repository.folder}", str(tmp_path / "clone"))
    for text in ("git:HEAD~1", "git:origin/other"):
        with pytest.raises(
            CheckpointError, match=r"the clone is shallow\. Fetch the history: fetch-depth: 0"
        ):
            resolve(Reference.parse(text), tmp_path / "clone")


def test_no_repository(tmp_path):
    with pytest.raises(CheckpointError, match="is not in a git repository, and git: needs one"):
        resolve(Reference("HEAD"), tmp_path)


def test_a_worktree_whose_repository_is_elsewhere(tmp_path):
    (tmp_path / ".git").write_text("gitdir: /nowhere/.git/worktrees/x\n")
    with pytest.raises(CheckpointError, match=r"names a repository that is not there: /nowhere/\.git"):
        resolve(Reference("HEAD"), tmp_path)


def test_a_bare_repository(repository, tmp_path):
    repository.commit(a="1")
    repository.git("clone", "-q", "--bare", str(repository.folder), str(tmp_path / "bare"))
    with pytest.raises(CheckpointError, match=r"bare|work tree"):
        resolve(Reference("HEAD"), tmp_path / "bare")


def test_a_repository_of_somebody_else(repository, monkeypatch):
    repository.commit(a="1")
    # git's own switch for tests; no variable of this kind is handed on.
    monkeypatch.setattr(reference, "QUIET", reference.QUIET | {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"})
    with pytest.raises(CheckpointError, match=r"git config --global --add safe\.directory"):
        resolve(Reference("HEAD"), repository.folder)


def test_git_is_missing(repository, monkeypatch):
    repository.commit(a="1")
    monkeypatch.setenv("PATH", os.fspath(repository.folder))
    with pytest.raises(CheckpointError, match="the command git, which is not installed"):
        resolve(Reference("HEAD"), repository.folder)


def test_the_environment_of_a_hook_is_no_matter(repository, tmp_path, monkeypatch):
    sha = repository.commit(a="1")
    other = Repository(tmp_path / "other")
    other.commit(b="1")
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.folder / ".git/index"))
    assert resolve(Reference("HEAD"), repository.folder).sha == sha


def test_how_it_is_printed():
    assert shown(Reference("a\x1b[31m", merge_base=True)) == r"git:a\x1b[31m..."

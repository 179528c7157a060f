from __future__ import annotations

import os
import re
import stat
import subprocess

import pytest
from repositories import Repository

from pytest_ckptcompat.core.errors import CheckpointError
from pytest_ckptcompat.history.reference import Reference, resolve
from pytest_ckptcompat.history.tree import exported


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repo")


def head(repository, ref="HEAD"):
    return resolve(Reference(ref), repository.folder)


def files(folder):
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not name.startswith(".git/")}


def test_the_files_of_a_commit_and_nothing_of_today(repository):
    repository.commit(model="a = 1\n", pkg__deep__part="b = 2\n")
    repository.commit(model="a = 3\n")
    repository.write(model="a = 4\n", new="c = 5\n")
    (repository.folder / "odd ä\n.txt").write_bytes(b"\r\n\0")
    state = repository.state()
    with exported(head(repository, "HEAD~1")) as tree:
        assert files(tree.folder) == {"model.py": b"a = 1\n", "pkg/deep/part.py": b"b = 2\n"}
        assert tree.lacks == ""
    assert not tree.folder.exists()
    assert repository.state() == state


def test_names_and_bytes_are_kept(repository):
    (repository.folder / "odd ä\n.txt").write_bytes(b"\r\n\0")
    (repository.folder / "empty").write_bytes(b"")
    (repository.folder / "large").write_bytes(os.urandom(3 << 20))
    expected = {each.name: each.read_bytes() for each in repository.folder.iterdir() if each.is_file()}
    repository.commit()
    with exported(head(repository)) as tree:
        assert files(tree.folder) == expected


def test_no_filter_and_no_attribute_is_applied(repository):
    repository.put(".gitattributes", "*.py filter=evil\n*.txt export-ignore\n*.in export-subst eol=crlf\n")
    repository.put("a.txt", "a\n")
    repository.put("b.in", "$Format:%H$\n")
    repository.commit(model="a = 1\n")
    repository.git("config", "filter.evil.smudge", "touch ../canary; cat")
    with exported(head(repository)) as tree:
        found = files(tree.folder)
    assert (found["model.py"], found["a.txt"], found["b.in"]) == (b"a = 1\n", b"a\n", b"$Format:%H$\n")
    assert not (repository.folder.parent / "canary").exists()


def test_an_executable_stays_one(repository):
    repository.put("run.sh", "echo\n")
    (repository.folder / "run.sh").chmod(0o755)
    repository.commit()
    with exported(head(repository)) as tree:
        assert (tree.folder / "run.sh").stat().st_mode & stat.S_IXUSR


def test_links_inside_are_made_and_others_are_not(repository):
    repository.commit(pkg__model="a = 1\n")
    (repository.folder / "link.py").symlink_to("pkg/model.py")
    (repository.folder / "pkg/up").symlink_to("..")
    (repository.folder / "outside").symlink_to("../../secret")
    (repository.folder / "absolute").symlink_to("/etc/passwd")
    (repository.folder / "pkg/way").symlink_to("up/../../secret")
    repository.commit()
    with exported(head(repository)) as tree:
        assert (tree.folder / "link.py").read_text() == "a = 1\n"
        assert (tree.folder / "pkg/up").is_dir()
        assert not any(os.path.lexists(tree.folder / name) for name in ("absolute", "outside", "pkg/way"))
        assert tree.lacks == "3 links lead outside and are absent (absolute, outside, pkg/way)"


def test_submodules_are_absent_and_pointers_are_told(repository, tmp_path):
    other = Repository(tmp_path / "other")
    other.commit(part="1")
    repository.commit(model="a = 1")
    repository.git("submodule", "add", "-q", str(other.folder), "third")
    repository.put("net.pth", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    repository.commit()
    with exported(head(repository)) as tree:
        assert not (tree.folder / "third").exists()
        assert tree.lacks == "1 submodule is absent (third), 1 git LFS file is a pointer (net.pth)"


def test_the_folder_goes_whatever_happens(repository):
    repository.commit(model="a = 1")
    with pytest.raises(KeyboardInterrupt), exported(head(repository)) as tree:  # noqa: PT012
        kept = tree.folder
        raise KeyboardInterrupt
    assert not kept.parent.exists()


def test_an_object_that_is_missing(repository):
    repository.commit(model="a = 1\n" * 100)
    sha = repository.git("rev-parse", "HEAD:model.py")
    (repository.folder / ".git/objects" / sha[:2] / sha[2:]).unlink()
    with pytest.raises(CheckpointError, match=f"git can't read object {sha}"), exported(head(repository)):
        pass


@pytest.mark.parametrize("name", ["..", ".git", ".Git"])
def test_paths_that_lead_out_are_refused(repository, name):
    repository.commit(model="a = 1\n")
    sha = repository.git("rev-parse", "HEAD:model.py")
    tree = f"100644 {name}\0".encode() + bytes.fromhex(sha)
    made = subprocess.run(
        ["git", "hash-object", "-w", "-t", "tree", "--literally", "--stdin"],
        cwd=repository.folder, input=tree, capture_output=True, check=True,
    ).stdout.decode().strip()  # fmt: skip
    commit = repository.git("commit-tree", made, "-m", "evil")
    with (
        pytest.raises(CheckpointError, match=rf"holds a file with the path '{re.escape(name)}'"),
        exported(head(repository, commit)),
    ):
        pass

from pathlib import Path

import pytest

from pytest_ckptcompat.plugin.checkpoints import expand, ids


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("net2.pth", "net10.pth", "a/net.pth", "b/net.pth", "odd[1].pth"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_a_file_is_itself_and_shown_as_short_as_can_be(folder):
    assert expand("net2.pth", [folder]) == ["net2.pth"]
    assert expand(str(folder / "net2.pth"), [Path("/")]) == ["net2.pth"]


def test_a_glob_is_its_matches_in_natural_order(folder):
    assert expand("net*.pth", [folder]) == ["net2.pth", "net10.pth"]
    assert expand("**/net.pth", [folder]) == ["a/net.pth", "b/net.pth"]


def test_a_name_that_looks_like_a_glob_is_itself_first(folder):
    assert expand("odd[1].pth", [folder]) == ["odd[1].pth"]


def test_the_first_folder_that_has_it_wins(folder):
    assert expand("net.pth", [folder / "a", folder / "b"]) == ["a/net.pth"]
    assert expand("net.pth", [folder, folder / "b"]) == ["b/net.pth"]


def test_what_does_not_exist_is_given_as_it_is(folder):
    assert expand("none.pth", [folder]) == ["none.pth"]
    assert expand("none*.pth", [folder]) == ["none*.pth"]


def test_urls_are_left_alone(folder):
    assert expand("s3://bucket/net.pth", [folder]) == ["s3://bucket/net.pth"]


def test_a_glob_in_a_bucket_is_its_matches(folder):
    bucket = pytest.importorskip("fsspec").filesystem("memory")
    for name in ("net10.pth", "net2.pth", "other"):
        bucket.pipe(f"/globbed/{name}", b"x")
    found = expand("memory://globbed/*.pth", [folder])
    assert found == ["memory://globbed/net2.pth", "memory://globbed/net10.pth"]
    assert ids(found) == ["net2.pth", "net10.pth"]
    assert expand("memory://globbed/*.bin", [folder]) == ["memory://globbed/*.bin"]
    assert expand("nosuch://globbed/*.bin", [folder]) == ["nosuch://globbed/*.bin"]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([], []),
        (["params/net.pth"], ["net.pth"]),
        (["a/net.pth", "b/net.pth"], ["a/net.pth", "b/net.pth"]),
        (["a/net.pth", "a/old.pth"], ["net.pth", "old.pth"]),
        (["v1/a/net.pth", "v2/a/net.pth"], ["v1/a/net.pth", "v2/a/net.pth"]),
        (["net.pth", "a/net.pth"], ["net.pth", "a/net.pth"]),
        (["s3://b/n\u00e9t.pth"], ["n\\xe9t.pth"]),
        (["https://u:p/w@h.org/net.pth?sig=a/b"], ["net.pth"]),
        (
            ["https://u:p@h.org/net.pth?sig=a", "https://h.org/v2/net.pth?sig=b"],
            ["h.org/net.pth", "v2/net.pth"],
        ),
        (["https://h.org/net.pth?version=1", "https://h.org/net.pth?version=2"], ["net.pth", "net.pth"]),
    ],
)
def test_ids_are_short_and_different(paths, names):
    assert ids(paths) == names

import pytest

from pytest_ckptcompat.files.paths import beside, display, inside, is_web, name_of


@pytest.mark.parametrize(
    ("path", "name", "there"),
    [
        ("a/m.index.json", "1.bin", "a/1.bin"),
        ("m.index.json", "1.bin", "1.bin"),
        ("s3://b/a/m.index.json", "1.bin", "s3://b/a/1.bin"),
        ("s3://b/a/m.index.json?versionId=7", "1.bin", "s3://b/a/1.bin"),
        ("https://h/a/m.index.json?sig=x/y", "1.bin", "https://h/a/1.bin?sig=x/y"),
        ("https://h/a/m.index.json#token=x/y", "1.bin", "https://h/a/1.bin"),
        ("https://h/m.index.json?sig=x#t", "odd 1?.bin", "https://h/odd%201%3F.bin?sig=x"),
        ("simplecache::https://h/a/m.json?s=1", "1.bin", "simplecache::https://h/a/1.bin?s=1"),
        ("zip://a/m.json::https://h/z.zip?s=1", "1.bin", "zip://a/1.bin::https://h/z.zip?s=1"),
    ],
)
def test_a_file_beside_another(path, name, there):
    """The query goes along to a web server, since the names are of files on that same server."""
    assert beside(path, name) == there


@pytest.mark.parametrize(
    ("folder", "there"),
    [
        ("a", "a/x"),
        ("a/", "a/x"),
        ("s3://b/a", "s3://b/a/x"),
        ("s3://b/a/", "s3://b/a/x"),
        ("https://h/a/?sig=1", "https://h/a/x?sig=1"),
        ("zip://a::/z.zip", "zip://a/x::/z.zip"),
    ],
)
def test_a_file_in_a_folder(folder, there):
    assert inside(folder, "x") == there


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/net.pth", "net.pth"),
        ("a/", "a"),
        ("/", "/"),
        ("s3://b/run/", "run"),
        ("https://u:p@h/net.pth?sig=a/b", "net.pth"),
        ("a/n\x1b[1m.pth", r"n\x1b[1m.pth"),
    ],
)
def test_the_name_of_a_path(path, name):
    assert name_of(path) == name


def test_a_path_is_shown_escaped_and_without_secrets():
    assert display("https://u:p@h/n\n.pth?sig=1") == r"https://h/n\n.pth"


@pytest.mark.parametrize(
    ("url", "yes"),
    [
        ("https://h/x", True),
        ("http://h/x", True),
        ("simplecache::https://h/x", True),
        ("zip://x::https://h/z.zip", False),
        ("s3://b/x", False),
    ],
)
def test_whether_a_web_server_is_asked_for_the_name(url, yes):
    assert is_web(url) is yes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_ckptcompat.core.redaction import is_url, public, redact

SECRET = "S3CR3T"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("http://user:S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://:S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://user:pa@S3CR3T@127.0.0.1:9/net.pth", "http://127.0.0.1:9/net.pth"),
        ("http://user:pa/S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://user:pa#S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://user:pa?S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://user:p@ss/S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://user:p@ss/w#S3CR3T@host/net.pth", "http://***/net.pth"),
        ("http://user:123/S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://user:12#S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://user:p::S3CR3T@host/net.pth", "http://host/net.pth"),
        ("http://user:S3CR3T/net.pth", "http://user/net.pth"),
        ("http://to/S3CR3T@127.0.0.1:9/net.pth", "http://127.0.0.1:9/net.pth"),
        ("http://first.last:12/S3CR3T@host.com/net.pth", "http://host.com/net.pth"),
        ("https://host/net.pth?X-Amz-Signature=S3CR3T", "https://host/net.pth"),
        ("https://host/net.pth#access_token=S3CR3T", "https://host/net.pth"),
        ("https://host/net.pth?sig=a@b/S3CR3T", "https://host/net.pth"),
        ("https://user:pw@host/net.pth?sig=a@b/S3CR3T", "https://***/net.pth"),
        ("http://nas:80/x.pth#t=a@b/S3CR3T", "http://***/x.pth"),
        ("s3://key:ab/S3CR3T@bucket/net.pth", "s3://bucket/net.pth"),
        ("simplecache::https://u:S3CR3T@host/net.pth?sig=S3CR3T", "simplecache::https://host/net.pth"),
        ("zip://net.pth::https://u:S3CR3T@host/a.zip?s=S3CR3T", "zip://net.pth::https://host/a.zip"),
        ("HTTPS://user:S3CR3T@[::1]:80/net.pth", "HTTPS://[::1]:80/net.pth"),
        ("https:/user:S3CR3T@host/net.pth?S3CR3T", "https:/host/net.pth"),  # as pathlib writes it
        ("/home/me/https:/user:S3CR3T@host/net.pth?S3CR3T", "/home/me/https:/host/net.pth"),
        (" https://u:S3CR3T@host/net.pth", " https://host/net.pth"),
        ("./https://u:S3CR3T@host/net.pth?S3CR3T", "./https://host/net.pth"),
        ("runs/https:/u:S3CR3T@host/net.pth#S3CR3T", "runs/https:/host/net.pth"),
        ("https:u:S3CR3T@host/net.pth", "https:host/net.pth"),
        ("git:https://u:S3CR3T@host/repo", "git:https://host/repo"),
        ("git:main#http://u:S3CR3T@host/repo", "git:main#http://host/repo"),
        ("https://u%3AS3CR3T%40host/net.pth", "https://host/net.pth"),
        ("https://host/net.pth%3Fsig%3DS3CR3T", "https://host/net.pth"),
        ("https://host/net.pth;token=S3CR3T?a=1", "https://host/net.pth"),
    ],
)
def test_of_a_url_only_what_is_no_secret_is_left(path, shown):
    assert public(path) == shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    "path",
    [
        "net.pth",
        "runs/a:b@c/net.pth",
        "what?/net#1.pth",
        "C:/models@2/net.pth",
        "file:///a@b/net.pth?1",
        "s3://bucket/run@3/net.pth",
        "hf://org/model@main/net.pth",
        "http://127.0.0.1:8000/model@v2/net.pth",
        "https://example.com/model@v2.pth",
        "zip://net.pth::/data/a.zip",
        "memory://x/net.pth",
        "https://host/a%3Fb;c/net.pth",
    ],
)
def test_what_has_no_secret_stays_as_it_is(path):
    assert public(path) == path


_ANYTHING = st.text(st.sampled_from("ab@/#?:[]%.1 "), max_size=8)


@given(_ANYTHING, _ANYTHING, st.sampled_from(["http://", "s3://", "simplecache::https://"]))
@example("p@ss/", "#", "http://")
def test_a_password_is_hidden_whatever_is_in_it(before, after, scheme):
    """Also where it is pasted as it is; only a slash that ends a whole host in front of it hides an ``@``."""
    url = f"{scheme}user:x{before}{SECRET}{after}@host/net.pth"
    shown = public(url)
    assert SECRET not in shown
    assert shown.startswith(scheme)


@given(_ANYTHING, _ANYTHING, st.sampled_from("?#"), st.sampled_from(["", "user:pw@"]))
def test_a_token_is_hidden_whatever_is_in_it(before, after, mark, user):
    shown = public(f"https://{user}example.com/net.pth{mark}sig={before}{SECRET}{after}")
    assert SECRET not in shown
    assert "net.pth" in shown


def test_urls_in_a_text():
    text = "'http://u:S3CR3T@h/x.pth?sig=S3CR3T' is not a model, see https://a.b/c. Or (s3://b/k#S3CR3T)"
    assert redact(text) == "'http://h/x.pth' is not a model, see https://a.b/c. Or (s3://b/k)"
    assert redact("no URL in it: a::b, 3:4, C:/x") == "no URL in it: a::b, 3:4, C:/x"


@pytest.mark.parametrize(
    ("path", "yes"),
    [
        ("s3://b/k", True),
        ("simplecache::https://h/k", True),
        ("net.pth", False),
        ("model:Net", False),
        ("C:/net.pth", False),
        ("https:/h/k", False),
    ],
)
def test_what_is_a_url(path, yes):
    assert is_url(path) is yes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Header part (b'Bearer hf_S3CR3TS3CR3TS3CR3T\\n')", "Header part (b'Bearer ***')"),
        ("Invalid token hf_abcdefghijklmnopqrstuvwx", "Invalid token ***"),
        ("GET /net.pth?X-Amz-Signature=S3CR3T&a=1", "GET /net.pth?X-Amz-Signature=***&a=***"),
        ("key AKIAIOSFODNN7EXAMPLE is not known", "key *** is not known"),
        ("the sign of S3CRET-VALUE is wrong", "the sign of *** is wrong"),
        ("Authorization: Basic dXNlcjpTM0NSM1Q=", "Authorization: Basic ***"),
        ("is it? pad_token=1234, Basic functionality", "is it? pad_token=1234, Basic functionality"),
    ],
)
def test_tokens_in_a_text(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", "S3CRET-VALUE\n")
    monkeypatch.setenv("PIN_TOKEN", "1234")  # too short to be looked for
    assert redact(text) == shown

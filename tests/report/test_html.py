from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reports import ONET

from pytest_ckptcompat.core.escape import escape
from pytest_ckptcompat.core.findings import Finding, Stage, finding
from pytest_ckptcompat.report import html
from pytest_ckptcompat.report.html import MOST_ROWS
from pytest_ckptcompat.report.report import Report

if TYPE_CHECKING:
    from pathlib import Path


def render(checks: list[tuple[str, Report]]) -> str:
    return html.render(checks, "1 of 2 checks passed")


LAYERS = Report(
    "llama.pth",
    "Llama",
    findings=[
        *(finding("missing-key", f"model.layers.{i}.w", "", "(4,) f32") for i in range(32) if i != 17),
        finding("unexpected-key", "aux.w", "(1,) f32"),
        Finding("dtype-mismatch", "warn", "model.norm.w", "(4,) f32", "(4,) f16"),
        finding("forward-error", message="layers.0 (Layer): ValueError: no (llama.py:3)"),
    ],
)


class Page(HTMLParser):
    """A page read back: every element must be closed in order, and each leaf keeps its texts."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.leaves: list[dict[str, str]] = []
        self.texts: list[tuple[str, str]] = []
        self._class = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attributes)
        assert not any(name.startswith("on") for name in given)
        if tag not in ("meta", "input"):
            self.open.append(tag)
        self._class = given.get("class") or tag
        if "data-key" in given:
            self.leaves.append({"key": given["data-key"] or "", "rule": given["data-rule"] or ""})

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._class = ""

    def handle_data(self, data: str) -> None:
        self.texts.append((self._class, data))

    def said(self, kind: str) -> list[str]:
        return [text for where, text in self.texts if where == kind]


OUR_TAGS = {
    *("html", "head", "meta", "title", "style", "script", "body", "nav", "section", "div", "input", "button"),
    *("h1", "h2", "h3", "p", "ul", "li", "a", "span", "b", "mark", "pre", "code", "details", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}


def test_the_page_shows_the_verdict_both_sides_and_the_suggestion() -> None:
    page = Page(render([("tests/test_onet.py::test_old[net.pth]", ONET)]))
    assert ONET.verdict in page.said("h2") + page.said("")
    assert page.leaves == [{"key": "out2.weight", "rule": "shape-mismatch"}]
    assert page.said("mark") == ["4", "14"]
    assert 'from pytest_ckptcompat import Recipe, tile\n\nRecipe(tile("out2.*", dim=0))' in page.said("code")
    assert "no source_model declared" in page.said("td")
    assert "tests/test_onet.py::test_old[net.pth]" in page.said("nodeid")


def test_shapes_after_a_recipe_are_headed_so() -> None:
    applied = replace(ONET, stages=[Stage("recipe", "passed", "changes 2 of 63 keys")])
    for report, head in ((ONET, "checkpoint"), (applied, "after recipe")):
        assert Page(render([("t", report)])).said("span")[:4] == ["key", "rule", head, "model"]


def test_a_side_is_called_absent_only_where_it_is() -> None:
    def absent(*about: str) -> list[str]:
        return Page(render([("t", Report("c", "m", findings=[finding(*about)]))])).said("absent")

    assert absent("missing-key", "w", "", "(4,) f32") == ["absent"]
    assert absent("rollback-unexpected", "w", "", "(4,) f32") == ["absent"]
    assert absent("non-finite-value", "w", "3 of 4") == []
    assert absent("recipe-protected-key", "w") == []


def test_layers_are_one_leaf_and_modules_count_their_keys() -> None:
    page = Page(
        render([("t", replace(LAYERS, fitting={"model.embed.w": "(9,) f32", "model.head.w": "(9,) f32"}))])
    )
    assert {leaf["key"]: leaf["rule"] for leaf in page.leaves} == {
        "aux.w": "unexpected-key",
        "model.layers.{0-16,18-31}.w": "missing-key",
        "model.norm.w": "dtype-mismatch",
        "model.embed.w": "fits",
        "model.head.w": "fits",
    }
    counts = "".join(text for _, text in page.texts)
    assert "31 wrong" in counts
    assert "2 fit" in counts
    assert "layers.0 (Layer): ValueError: no (llama.py:3)" in counts


def test_modules_with_faults_are_open_and_others_closed() -> None:
    text = render([("t", replace(LAYERS, fitting={"fine.0.w": "(9,) f32"}))])
    assert re.search(r'<details open><summary><span class="name">aux<', text)
    assert re.search(r'<details><summary><span class="name">fine.0<', text)


def test_failures_come_first_and_are_linked() -> None:
    fit = Report("net.pth", "onet.Net", matched=1, total=1)
    text = render([("good", fit), ("bad", ONET)])
    assert re.findall(r'<a href="#(.*?)">(.*?)</a>', text) == [("check-0", "bad"), ("check-1", "good")]
    assert re.findall(r'<section id="(.*?)" class="(.*?)">', text) == [
        ("check-0", "error"),
        ("check-1", "ok"),
    ]
    assert "<h1>Checkpoints: 1 of 2 checks passed</h1>" in text


def test_a_run_without_checks_has_a_page_too() -> None:
    assert Page(html.render([], "0 of 0 checks passed")).said("h1") == ["Checkpoints: 0 of 0 checks passed"]


def test_nothing_is_fetched_and_only_our_own_script_may_run() -> None:
    text = render([("t", ONET)])
    assert not re.search(r'(?:src|href)="(?!#)|url\(|@import', text)
    (policy,) = re.findall(r'Content-Security-Policy" content="(.*?)"', text)
    for kind in ("style", "script"):
        (inside,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "</ul></section><h1>forged</h1>",
    '" onmouseover="document.title=1',
    "a.<img src=x onerror=alert(1)>.w",
    "&lt;b&gt;",
    "\x1b[31m\u202e\n::error::",
    "{0-3}",
    "a..b.",
    ".",
    "x." * 3000 + "w",
    "y" * 100_000,
]


def test_hostile_text_is_only_text() -> None:
    found = [finding("shape-mismatch", key, key, key[::-1], key) for key in HOSTILE]
    found += [finding("forward-error", message=key) for key in HOSTILE]
    whole = Report("c", "m", findings=found, stages=[Stage(key, "failed", key) for key in HOSTILE])
    text = render(
        [(HOSTILE[0], replace(whole, fitting=dict.fromkeys(HOSTILE, HOSTILE[0]))), (HOSTILE[1], whole)]
    )
    page = Page(text)
    assert page.tags <= OUR_TAGS
    assert "forged" not in page.said("h1")
    keys = {leaf["key"] for leaf in page.leaves}
    assert {escape(key.replace("{", "{{").replace("}", "}}"), 1000) for key in HOSTILE} == keys
    assert "\x1b" not in text
    assert "\u202e" not in text


@given(st.lists(st.text(alphabet="<>&\"'a.{}0\n", min_size=1, max_size=20), min_size=1, max_size=8))
def test_any_key_is_read_back_as_it_was(keys: list[str]) -> None:
    page = Page(render([("t", Report("c", "m", findings=[finding("missing-key", key) for key in keys]))]))
    assert page.tags <= OUR_TAGS
    assert sum(len(leaf["key"]) for leaf in page.leaves) >= max(len(escape(key)) for key in keys)


def test_the_rows_of_a_huge_report_are_limited_and_the_rest_is_counted() -> None:
    found = [finding("missing-key", f"m{i % 50}.k{i}x", "", f"({i},)") for i in range(MOST_ROWS + 1234)]
    text = render([("t", Report("c", "m", findings=found))])
    assert text.count("data-key=") == MOST_ROWS
    assert "1,234 more keys are in the JSON report" in text


# -- in a browser -------------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    *("--virtual-time-budget=2000", "--dump-dom"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browse:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    return Browse(tmp_path_factory.mktemp("browser"))


class Browse:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, page: str, fragment: str = "") -> str:
        """The document as it is once the page's script has run."""
        path = self.folder / "page.html"
        path.write_text(page, encoding="utf-8")
        command = [str(CHROMIUM), *QUIET, f"--user-data-dir={self.folder / 'profile'}"]
        done = subprocess.run(
            [*command, f"{path.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout


def rows_shown(document: str) -> list[str]:
    leaves = re.findall(r'<li class="leaf [^>]*>', document)
    return [re.search(r'data-key="(.*?)"', leaf)[1] for leaf in leaves if " hidden" not in leaf]  # type: ignore[index]


def test_search_and_filter_work_in_a_browser(browser: Browse) -> None:
    page = render([("t", replace(LAYERS, fitting={"model.layers.17.w": "(4,) f32"}))])
    document = browser(page)
    assert len(rows_shown(document)) == 4
    assert "34 of 34 keys" in document
    assert '<div id="tools">' in document
    # a group is found by the keys that it stands for, and only by them
    assert rows_shown(browser(page, "#q=layers.16.w")) == ["model.layers.{0-16,18-31}.w"]
    assert rows_shown(browser(page, "#q=layers.17.")) == ["model.layers.17.w"]
    assert rows_shown(browser(page, "#q=LAYERS.1")) == ["model.layers.17.w", "model.layers.{0-16,18-31}.w"]
    assert rows_shown(browser(page, "#q=layers.32")) == []
    assert rows_shown(browser(page, "#hide=missing-key,fits")) == ["aux.w", "model.norm.w"]


def test_hostile_keys_do_nothing_in_a_browser(browser: Browse) -> None:
    found = [finding("missing-key", key, "", key, key) for key in HOSTILE]
    document = browser(render([(key, Report("c", "m", findings=found)) for key in HOSTILE[:3]]))
    assert "<title>Checkpoints: 1 of 2 checks passed</title>" in document
    assert "<h1>forged" not in document
    assert len(rows_shown(document)) == 3 * len(HOSTILE)


def test_the_page_is_whole_where_its_script_may_not_run(browser: Browse) -> None:
    page = render([("t", LAYERS)])
    document = browser(re.sub(r"script-src '.*?'", "script-src 'none'", page))
    assert re.search(r'<div id="tools" hidden', document)
    assert len(rows_shown(document)) == 3

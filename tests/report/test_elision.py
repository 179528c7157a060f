from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pytest_ckptcompat.report.fit_text import LEAST, elide, shortened


def test_a_text_that_fits_is_left_alone() -> None:
    assert elide(["out2.weight"], 11) == ["out2.weight"]


def test_the_cut_is_in_the_middle_and_visible() -> None:
    assert elide(["encoder.layers.3.attention.q_proj.weight"], 24) == ["encode…ion.q_proj.weight"]


def test_a_difference_in_the_middle_is_kept() -> None:
    texts = [f"down_blocks.0.attentions.{i}.transformer_blocks.0.attn1.to_q.weight" for i in range(2)]
    first, second = elide(texts, 32)
    assert "0.transf" in first
    assert "1.transf" in second


def test_a_difference_near_the_end_is_kept() -> None:
    first, second = elide([f"{'a' * 40}{i}{'b' * 22}" for i in range(2)], 24)
    assert ("0" in first, "1" in second) == (True, True)
    assert len({first, second}) == 2


def test_texts_whose_differences_are_many_are_numbered() -> None:
    texts = [f"{'a' * 40}{one}{'b' * 40}{other}{'c' * 40}" for one in "12" for other in "12"]
    shown = elide(texts, 20)
    assert len(set(shown)) == 4
    assert all("…[" in text for text in shown)


@given(st.lists(st.text(alphabet="ab.0", max_size=60), max_size=30), st.integers(LEAST, 40))
def test_texts_fit_and_differ_where_they_differed(texts: list[str], room: int) -> None:
    shown = elide(texts, room)
    assert all(len(text) <= room for text in shown)
    assert [shown.index(text) for text in shown] == [texts.index(text) for text in texts]
    for text, short in zip(texts, shown, strict=True):
        assert short == text if len(text) <= room else "…" in short


def test_a_shortened_text_says_how_much_it_lacks() -> None:
    assert shortened("abcdef", 6) == "abcdef"
    assert shortened("abcdefghij", 4) == "ab…(+6 characters)…ij"

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from medmdm.reports.markup import join, raw, tag

# What XML, the oracle, cannot hold in any form is left out.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff"))


@given(TEXT, TEXT)
def test_any_text_comes_back_from_content_and_attribute(content: str, attribute: str) -> None:
    element = ElementTree.fromstring(tag("p", content, tag("b", "x"), title=attribute))
    assert (element.text or "") == content
    assert element.attrib["title"] == attribute
    assert [child.tag for child in element] == ["b"]


def test_attributes() -> None:
    assert tag("td", 1, class_="a", data_case=3, hidden=True, id=None, lang=False) == (
        '<td class="a" data-case="3" hidden>1</td>'
    )
    assert tag("meta", name="x", content="y") == '<meta name="x" content="y">'
    assert tag("svg", viewBox="0 0 1 1") == '<svg viewBox="0 0 1 1"></svg>'


def test_join_escapes_text_and_keeps_markup() -> None:
    assert join("<", tag("br"), None, 2, raw("&amp;")) == "&lt;<br>2&amp;"

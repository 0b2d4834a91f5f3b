"""Words in the singular and the plural."""

import pytest

from text2sql.words import plural, singular


@pytest.mark.parametrize("word", ["singer", "country", "class", "match", "box", "name"])
def test_a_plural_is_made_and_undone(word: str) -> None:
    assert singular(plural(word)) == word


@pytest.mark.parametrize("word", ["class", "is", "as", "singer"])
def test_what_is_no_plural_has_no_singular(word: str) -> None:
    assert singular(word) is None

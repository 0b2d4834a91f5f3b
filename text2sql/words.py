"""Words of questions and of names: how these fall into words, stems, singular and plural."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import snowballstemmer

_STEMMER = snowballstemmer.stemmer("english")
# Plurals that no ending tells, as far as tables are called so.
_IRREGULAR = {"people": "person", "children": "child", "men": "man", "women": "woman"}
WORD = re.compile(r"\w+|[^\w\s]")


def words_of(text: str) -> list[str]:
    """Lower-case words and punctuation marks."""
    return WORD.findall(text.lower())


def unaccented(text: str) -> str:
    """Return a text without its accents, as uncased tokenizers read it: Zurich for Zürich."""
    if text.isascii():
        return text
    apart = unicodedata.normalize("NFD", text)
    bare = "".join(char for char in apart if unicodedata.category(char) != "Mn")
    return unicodedata.normalize("NFC", bare)


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Return a word's stem (Snowball's English stemmer), lower case."""
    lowered = word.casefold()
    return _STEMMER.stemWord(_IRREGULAR.get(lowered, lowered))


def split_name(name: str) -> str:
    """Split a name at underscores and at the humps of camel case: "StadiumID" is "stadium id"."""
    spaced = "".join(
        f" {char}" if char.isupper() and name[i - 1 : i].islower() else char
        for i, char in enumerate(name)
    )
    return " ".join(spaced.replace("_", " ").lower().split())


def plural(words: str) -> str:
    """Return the regular plural of a lower-case English word, or of the last one of several."""
    if words == "species":
        return words
    if re.search("[^aeiou]y$", words):
        return f"{words[:-1]}ies"
    return words + ("es" if words.endswith(("ss", "x", "ch", "sh")) else "s")


@lru_cache(maxsize=100_000)
def singular(word: str) -> str | None:
    """Return the word, of three letters at least, whose `plural` this is; None without one."""
    for ending, instead in (("ies", "y"), ("es", ""), ("s", "")):
        stem = word.removesuffix(ending) + instead
        if len(stem) > 2 and plural(stem) == word and not word.endswith("ss"):
            return stem
    return None

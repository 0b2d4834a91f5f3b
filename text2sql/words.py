"""Words of questions and of names: stems, and how a name of a database falls into words."""

from __future__ import annotations

from functools import lru_cache

import snowballstemmer

# Plurals that no ending tells, as far as tables are called so.
_IRREGULAR = {"people": "person", "children": "child", "men": "man", "women": "woman"}


@lru_cache(maxsize=100_000)
def stem(word: str) -> str:
    """Return a word's stem (Snowball's English stemmer), lower case."""
    lowered = word.casefold()
    return _stemmer().stemWord(_IRREGULAR.get(lowered, lowered))


@lru_cache(maxsize=1)
def _stemmer() -> snowballstemmer.english_stemmer.EnglishStemmer:
    return snowballstemmer.stemmer("english")


def split_name(name: str) -> str:
    """Split a name at underscores and at the humps of camel case: "StadiumID" is "stadium id"."""
    spaced = "".join(
        f" {char}" if char.isupper() and name[i - 1 : i].islower() else char
        for i, char in enumerate(name)
    )
    return " ".join(spaced.replace("_", " ").lower().split())

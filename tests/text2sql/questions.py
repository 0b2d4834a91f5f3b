"""Dialogues about the concerts of conftest, with SQL and rewrites, and a parser that is tiny."""

from pathlib import Path
from typing import Any

import torch

from text2sql.dialogue import Example, Interaction, Turn, examples
from text2sql.encoder import build_encoder, train_tokenizer
from text2sql.parser import ParserNetwork
from text2sql.parser_features import Featuriser
from text2sql.schema import Schema

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 192,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DIALOGUES = [
    [
        ("Show all singers.", "SELECT * FROM singer", None),
        (
            "Which of them are from France?",
            "SELECT * FROM singer WHERE Country = 'France'",
            "Show all singers from France.",
        ),
        (
            "How many are there?",
            "SELECT count(*) FROM singer WHERE Country = 'France'",
            "How many singers are from France?",
        ),
    ],
    [
        (
            "What is the name of the largest stadium by capacity?",
            "SELECT Name FROM Stadium ORDER BY Capacity DESC LIMIT 1",
            None,
        ),
        (
            "And the smallest?",
            "SELECT Name FROM Stadium ORDER BY Capacity ASC LIMIT 1",
            "What is the name of the smallest stadium by capacity?",
        ),
    ],
    [
        (
            "How many concerts does each stadium have?",
            "SELECT T1.Name, count(*) FROM Stadium AS T1 JOIN concert AS T2 ON T1.Stadium_ID = "
            "T2.Stadium_ID GROUP BY T1.Name",
            None,
        ),
        (
            "Which have none?",
            "SELECT Name FROM Stadium WHERE Stadium_ID NOT IN (SELECT Stadium_ID FROM concert)",
            "Which stadiums have no concert?",
        ),
    ],
    [
        (
            "Which singers are older than 30?",
            "SELECT Name FROM singer WHERE Age > 30",
            None,
        ),
        (
            "What is their average age?",
            "SELECT avg(Age) FROM singer WHERE Age > 30",
            "What is the average age of singers older than 30?",
        ),
    ],
]


def dialogues(schema: Schema, database: Path | None = None) -> list[Example]:
    """Every turn as an example."""
    interactions = [
        Interaction(schema.db_id, tuple(Turn(*turn) for turn in turns)) for turns in DIALOGUES
    ]
    databases = {} if database is None else {schema.db_id: database}
    return list(examples(interactions, {schema.db_id: schema}, databases))


def tiny_parser(**changes: Any) -> tuple[Featuriser, ParserNetwork]:
    """A network of two small layers, and what reads for it."""
    torch.manual_seed(0)
    texts = [text for turns in DIALOGUES for turn in turns for text in (turn[0], turn[2] or "")]
    words = train_tokenizer({"": [*texts, *texts, "stadium capacity singer concert title"]}, 400)
    sizes: dict[str, Any] = {"width": 32, "layers": 1, "decoder_layers": 1, "heads": 2}
    network = ParserNetwork(build_encoder(SIZES, words), **{**sizes, "dropout": 0.0, **changes})
    return Featuriser(words), network

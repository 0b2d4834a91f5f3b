"""The parser learns, writes only what runs, and scores what it decodes as it is trained to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reading import NoReading
from tests.text2sql.conftest import entry_of, same_query
from tests.text2sql.questions import dialogues, tiny_parser
from tests.text2sql.rewriters import ready
from text2sql.dialogue import Example
from text2sql.execute import Database
from text2sql.grammar import SYMBOLS
from text2sql.parser import ParserNetwork
from text2sql.parser_features import (
    _AREA,
    SLOT_KINDS,
    Features,
    Featuriser,
    batches,
    collate,
)
from text2sql.parser_search import _Path, search
from text2sql.parsing import Parser
from text2sql.schema import Schema
from text2sql.sql import SqlError, parse, to_sql


@pytest.fixture
def turns(schema: Schema, database: Path) -> list[Example]:
    return dialogues(schema, database)


def features(featuriser: Featuriser, turns: list[Example]) -> list[Features]:
    return [featuriser(e.rewrite, e.schema, e.database, e.query) for e in turns]


def test_learning_reads_nothing_back(turns: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the masks that networks on a GPU get, which change nothing."""
    featuriser, network = tiny_parser()
    reader, known = Parser(featuriser, network), features(featuriser, turns)
    expected, _ = reader.loss(known)
    monkeypatch.setattr("text2sql.parser.attention_mask", ready)
    with NoReading():
        loss, _ = reader.loss(known)
        loss.backward()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(
    ("count", "steps"), [(3, 120), pytest.param(9, 600, marks=pytest.mark.slow)]
)
def test_it_learns_questions_by_heart_and_beam_search_finds_nothing_better(
    turns: list[Example], count: int, steps: int
) -> None:
    featuriser, network = tiny_parser(width=64)
    turns = turns[:count]
    known = features(featuriser, turns)
    optimizer = torch.optim.AdamW(network.parameters(), 2e-3)
    # On one CPU 300 steps were enough, on another `largest` and `smallest` parted after 400 only.
    for _ in range(steps):
        likelihood, choices = network.log_likelihood(collate(known))
        loss = -likelihood.sum() / choices.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    greedy, wide = search(network, collate(known)), search(network, collate(known), beam=4)
    for turn, one, several in zip(turns, greedy, wide, strict=True):
        schema = turn.schema
        text = to_sql(one[0].query, schema)
        assert same_query(parse(text, schema), parse(turn.query, schema), schema), text
        assert several[0].score >= one[0].score - 1e-4
        assert [p.score for p in several] == sorted((p.score for p in several), reverse=True)
    # Values are those of the question and of the cells.
    assert "'France'" in to_sql(greedy[1][0].query, turns[1].schema)


def test_what_an_untrained_parser_writes_runs(turns: list[Example], database: Path) -> None:
    for seed in range(3):
        featuriser, network = tiny_parser()
        torch.manual_seed(seed)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        network.eval()
        for parses in search(network, collate(features(featuriser, turns[:3])), beam=2):
            assert parses
            for found in parses:
                text = to_sql(found.query, turns[0].schema)
                assert Database(database).execute(text).status == "ok", text
                parse(text, turns[0].schema)


def test_a_derivation_that_would_go_on_is_ended(
    turns: list[Example], database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parser that never wants to end writes a long query, which runs all the same."""
    monkeypatch.setattr("text2sql.parser_search._LONGEST", 20)
    featuriser, network = tiny_parser()
    network.eval()
    advance = ParserNetwork.advance

    def never(*given: Any) -> torch.Tensor:
        found = advance(*given)
        found[..., SYMBOLS.index("end")] = -1e4
        return found

    monkeypatch.setattr(ParserNetwork, "advance", never)
    for beam in (1, 2):
        for parses in search(network, collate(features(featuriser, turns[:3])), beam):
            assert len(parses) == beam
            assert 20 < len(parses[0].choices) < 90
            text = to_sql(parses[0].query, turns[0].schema)
            assert Database(database).execute(text).status == "ok", text


def test_greedy_decoding_derives_each_choice_once(
    turns: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    featuriser, network = tiny_parser()
    network.eval()
    sent, choose = [], _Path._choose

    def counted(path: _Path, index: int) -> None:
        sent.append(index)
        choose(path, index)

    monkeypatch.setattr(_Path, "_choose", counted)
    parses = search(network, collate(features(featuriser, turns)))
    assert len(sent) == sum(len(parse.choices) for (parse,) in parses)


def test_a_decoded_query_scores_what_training_would_say_of_it(turns: list[Example]) -> None:
    featuriser, network = tiny_parser()
    network.eval()
    bare = [featuriser(e.rewrite, e.schema, e.database) for e in turns[:4]]
    for plain, parses in zip(bare, search(network, collate(bare), beam=3), strict=True):
        assert parses
        for found in parses:
            known = replace(plain, choices=found.choices, slots=found.slots)
            with torch.no_grad():
                likelihood, count = network.log_likelihood(collate([known]))
            assert int(count) == len(found.choices)
            # Training normalises over all columns, decoding over those that may stand there.
            assert float(likelihood) <= found.score + 1e-3
            assert float(likelihood) > found.score - 0.2 * len(found.choices)


def test_a_choice_at_a_time_is_the_whole_derivation_at_once(turns: list[Example]) -> None:
    """What is kept from earlier choices is what reading them again would give, in any order."""
    featuriser, network = tiny_parser()
    network.eval()
    batch = collate(features(featuriser, turns[:3]))
    nodes = batch.is_node.shape[1]
    with torch.no_grad():
        memory, empty = network.encode(batch), batch.is_empty
        steps, order = network.begin(batch), torch.tensor([0, 1, 2])
        length = min(len(f.choices) for f in batch.features)
        paths = [_Path(f) for f in batch.features]
        chosen, kinds = torch.zeros(3, 0, dtype=torch.long), torch.zeros(3, 0, dtype=torch.long)
        for place in range(length):
            kind = torch.tensor([SLOT_KINDS.index(path.slot.kind) for path in paths])
            last = torch.tensor([path.option(nodes) for path in paths])
            kinds = torch.cat([kinds, kind[:, None]], 1)
            chosen = torch.cat([chosen, last[:, None]], 1) if place else chosen
            at = torch.tensor([2, 0, 1]) if place % 2 else torch.tensor([0, 1, 2])
            before = torch.stack([(order == row).nonzero()[0, 0] for row in at.tolist()])
            found = network.advance(steps, at, before, last[at], kind[at])
            whole = network._scores(memory, network._decode(empty, memory, chosen, kinds)[:, -1:])
            assert torch.allclose(found, whole[at, 0], atol=1e-4)
            order = at
            for path in paths:
                gold = path.features.choices[place]
                path.then(gold.index if gold else 0, 0.0, 0, is_last=True)


def test_padding_changes_nothing(turns: list[Example]) -> None:
    featuriser, network = tiny_parser()
    network.eval()
    known = features(featuriser, turns)
    together, counts = network.log_likelihood(collate(known))
    alone = [network.log_likelihood(collate([f])) for f in known]
    assert torch.allclose(together, torch.cat([a for a, _ in alone]), atol=1e-4)
    assert counts.tolist() == [int(c) for _, c in alone]


def test_a_long_schema_is_read_in_rows_that_all_have_the_question(schema: Schema) -> None:
    entry = entry_of(schema)
    for number in range(120):
        for key in ("column_names", "column_names_original"):
            entry[key].append([0, f"measure number {number}"])
        entry["column_types"].append("number")
    long = Schema.from_entry(entry)
    featuriser, network = tiny_parser()
    found = featuriser("How many singers are there?", long)
    assert len(found.rows) > 1
    assert all(len(row) <= 192 for row in found.rows)
    named = {node for nodes in found.nodes for node in nodes} - {-1}
    assert named == set(range(len(found.links.relations)))
    for row, nodes in zip(found.rows, found.nodes, strict=True):
        assert len(row) == len(nodes)
        assert set(range(len(found.links.words))) <= set(nodes)
    assert search(network.eval(), collate([found]))[0]


def test_a_shuffled_schema_is_the_same_schema_in_another_order(schema: Schema) -> None:
    featuriser, network = tiny_parser()
    plain = featuriser("How many singers?", schema, None, "SELECT count(*) FROM singer")
    torch.manual_seed(1)
    drawn = [featuriser.redrawn(plain, shuffle=True) for _ in range(8)]
    assert len({each.nodes for each in drawn}) > 1
    words, columns = len(plain.links.words), len(schema.columns)
    for each in drawn:
        assert (each.choices, each.links) == (plain.choices, plain.links)
        assert sorted(each.nodes[0]) == sorted(plain.nodes[0])
        # Question, *, then every table with its own columns behind it.
        order = [node - words for node in dict.fromkeys(each.nodes[0]) if node >= words]
        assert order[0] == 0
        assert order[1] >= columns
        table = -1
        for node in order[1:]:
            table = node - columns if node >= columns else table
            assert node >= columns or schema.columns[node].table == table
    # The encoder reads other positions, so that the states of the same nodes differ.
    network.eval()
    states = network.encode(collate([plain, *drawn]))
    assert (states[0] - states[1:]).abs().flatten(1).amax(1).max() > 1e-3
    assert featuriser.redrawn(plain, shuffle=False).nodes == plain.nodes


def test_groups_hold_every_example_once(
    turns: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    featuriser, _ = tiny_parser()
    known = features(featuriser, turns)
    monkeypatch.setitem(_AREA, "cpu", 2 * len(known[0].links.relations) ** 2)
    groups = [group for group, _ in batches(known)]
    assert sorted(index for group in groups for index in group) == list(range(len(known)))
    assert len(groups) > 1


def test_the_gold_query_must_be_derivable(schema: Schema) -> None:
    featuriser, _ = tiny_parser()
    with pytest.raises(SqlError, match="FROM"):
        featuriser("How many?", schema, None, "SELECT count(*) FROM (SELECT * FROM singer)")

"""Speed of decoupled text-to-SQL: turns per second of rewriting, parsing, both, and of judging.

`python -m benchmarks.delta RUN [--quick] [--json PATH]`. RUN is a run folder of `experiment=delta`,
whose data are read as well. Turns are taken in batches of 1 and 32, medians of the rounds. It also
says which share of decoding the grammar takes (derivations and masks) and not the network, and how
many turns per second an evaluator judges that knows no query yet. First turns of a dialogue need no
rewriting and are timed with the others. How good they are: `python -m benchmarks.reproduce delta`.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.arena import interleaved, timed, versions, write
from lightning_modules.sql_parser import SqlParser
from lightning_modules.text_to_sql import TextToSql
from lightning_modules.utterance_rewriter import UtteranceRewriter
from runner.folder import checkpoint_of, fill
from runner.parts import build
from runner.validate import checked
from text2sql.dialogue import Example
from text2sql.evaluation import Judge
from text2sql.parser_features import batches
from text2sql.parser_search import search
from text2sql.parsing import Question

_SECONDS = 30.0  # what one execution may take


def load(run: Path, device: str) -> tuple[SqlParser, UtteranceRewriter, list[Example]]:
    """Return a run's parser and rewriter, and the turns of its test part that have SQL."""
    settings = checked(["task=test", f"ckpt_path={run}"])
    module: TextToSql = build("module", settings["module"])
    fill(module, checkpoint_of("run", run))
    datamodule = build("datamodule", settings["datamodule"])
    datamodule.prepare_data()
    datamodule.setup("test")
    turns = [e for e in datamodule.examples("test") if e.query is not None and e.schema is not None]
    assert module.parser is not None, "a checkpoint has both"
    assert module.rewriter is not None, "a checkpoint has both"
    return module.parser.to(device).eval(), module.rewriter.to(device).eval(), turns


def in_batches(
    written: Callable[[Sequence[Any]], list[str]], inputs: Sequence[Any], size: int
) -> list[str]:
    """Return what is written for all inputs, a batch at a time."""
    parts = (inputs[start : start + size] for start in range(0, len(inputs), size))
    return [text for part in parts for text in written(part)]


def _duration(call: Callable[..., object], *arguments: Any) -> float:
    return timed(call, *arguments)[1]


def speed(
    parser: SqlParser,
    rewriter: UtteranceRewriter,
    turns: Sequence[Example],
    sizes: Sequence[int],
    rounds: int,
) -> dict[str, Any]:
    """Time rewriting, parsing and judging, in batches of some sizes."""

    def parse(questions: Sequence[Question]) -> list[str]:
        return [sql for sql, _ in parser.reader.best(questions, parser.beam)]

    rates: dict[str, dict[str, float]] = {"rewriting": {}, "parsing": {}, "pipeline": {}}
    grammar: dict[str, float] = {}
    written: list[str] = []
    for size in sizes:
        questions = in_batches(rewriter.rewrite, turns, size)  # fills caches too
        asked = [(q, e.schema, e.database) for q, e in zip(questions, turns, strict=True)]
        written = in_batches(parse, asked, size)
        arms: dict[str, Callable[[], float]] = {
            "rewriting": partial(_duration, in_batches, rewriter.rewrite, turns, size),
            "parsing": partial(_duration, in_batches, parse, asked, size),
        }
        times = interleaved(arms, rounds)
        spent = {kind: median(values) for kind, values in times.items()}
        for kind, seconds in (*spent.items(), ("pipeline", sum(spent.values()))):
            rates[kind][str(size)] = len(turns) / seconds
        grammar[str(size)] = grammar_share(parser, turns, size)
    return {
        "turns_per_second": rates,
        "grammar_share": grammar,
        "evaluator_turns_per_second": judging(turns, written, rounds),
        "timed_turns": len(turns),
    }


def grammar_share(parser: SqlParser, turns: Sequence[Example], size: int) -> float:
    """Share of decoding spent on derivations, masks and the beam, not in the network."""
    featuriser = parser.reader.featuriser
    features = [featuriser(e.utterance, e.schema, e.database) for e in turns if e.schema]
    whole = network = 0.0
    for start in range(0, len(features), size):
        for _, collated in batches(features[start : start + size], parser.device):
            with watched(parser.network, "begin", "advance") as seconds:
                whole += _duration(search, parser.network, collated, parser.beam)
            network += sum(seconds.values())
    return 1 - network / whole


@contextmanager
def watched(network: torch.nn.Module, *names: str) -> Iterator[dict[str, float]]:
    """Add up the seconds that methods of a network take, by name."""
    seconds = dict.fromkeys(names, 0.0)

    def clocked(name: str) -> Callable[..., Any]:
        method = getattr(network, name)

        def call(*given: Any) -> Any:
            result, taken = timed(method, *given)
            seconds[name] += taken
            return result

        return call

    vars(network).update({name: clocked(name) for name in names})
    try:
        yield seconds
    finally:
        for name in names:
            del vars(network)[name]


def judging(turns: Sequence[Example], sql: Sequence[str], rounds: int) -> dict[str, float]:
    """Turns per second that a fresh evaluator judges, exact match alone and with execution."""

    def judge_all(kind: str) -> float:
        judge = Judge(_SECONDS)
        asked = [turn if kind == "execution" else replace(turn, database=None) for turn in turns]
        start = perf_counter()
        for example, text in zip(asked, sql, strict=True):
            judge(example, text)
        return perf_counter() - start

    kinds = ("exact", "execution")
    times = interleaved({kind: partial(judge_all, kind) for kind in kinds}, rounds)
    return {kind: len(turns) / median(seconds) for kind, seconds in times.items()}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark; return what it writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delta", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder of experiment=delta")
    parser.add_argument("--quick", action="store_true", help="32 turns, one round (3)")
    parser.add_argument("--json", type=Path, help="write one JSON object here")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--turns", type=int, help="at most so many of the test part (128)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    sql_parser, rewriter, turns = load(args.run, args.device)
    turns = turns[: args.turns or (32 if args.quick else 128)]
    result = speed(sql_parser, rewriter, turns, args.batches, 1 if args.quick else 3)
    result |= {"run": str(args.run), "versions": versions(args.device)}
    Console().print(table(result))
    write(args.json, result)
    return result


def table(found: dict[str, Any]) -> Table:
    """Turns per second by batch, and the cost of the grammar."""
    shown = Table(title=f"turns per second, {found['timed_turns']} turns", title_justify="left")
    sizes = list(found["grammar_share"])
    for name in ("", *(f"batch {size}" for size in sizes)):
        shown.add_column(name, justify="right" if name else "left")
    for name, rates in found["turns_per_second"].items():
        shown.add_row(name, *(f"{rates[size]:.1f}" for size in sizes))
    shares = (f"{found['grammar_share'][size]:.1%}" for size in sizes)
    shown.add_row("grammar, share of decoding", *shares)
    judged = found["evaluator_turns_per_second"]
    shown.caption = (
        f"evaluator: {judged['exact']:,.0f} turns per second exact match, "
        f"{judged['execution']:,.0f} with execution"
    )
    return shown


if __name__ == "__main__":
    main()

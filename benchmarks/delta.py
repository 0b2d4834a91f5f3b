"""Decoupled Text-to-SQL against one model that reads the dialogue: speed, match and annotation.

`python -m benchmarks.delta [--quick] [--root FOLDER] [--curve] --json PATH`. Three parts, all in
one run and on one data set: generated dialogues, or with `--root` SParC's or CoSQL's own folder.

* Speed: turns per second of rewriting, parsing and both, in batches of 1 and 32; which share of
  decoding the grammar takes (derivations and masks) and not the network; turns per second that an
  evaluator which knows no query yet judges. Medians of the rounds. First turns of a dialogue need
  no rewriting and are timed with the others.
* Arms: the parser on utterances as they are (raw), on the rewrites of each `--rewriter`, and on
  gold rewrites where there are any; and the end-to-end model. Question and interaction match, exact
  and by execution, by turn. What is not given is trained, small, in equally many steps.
* `--curve`: both ways trained with shares of the annotated in-domain turns, from `--parser` and
  `--rewriter` if they are given; single questions out of domain (Spider's, or generated) are there
  for both. End-to-end learns from the SQL of annotated turns. Decoupled first trains the rewriter
  on their rewrites, then the parser on their SQL, in the words of the gold rewrite or else of its
  own; without a rewriter and a pair to learn from, utterances stay as they are. Every model has
  `--steps` optimizer steps: decoupled training, with two models, takes longer. Trainings that the
  JSON file holds already, with equal settings, are not repeated.

The ledger: annotated in-domain turns with which the decoupled way reaches the question match
(exact) that the end-to-end model has with all of them.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from benchmarks.est_quality import settings_of
from benchmarks.stepper import versions
from datamodules.multi_turn_sql import MultiTurnSql
from hashing.plots import COLOURS
from ledger import Ledger, Quality, Saving
from lightning_modules.sql_parser import Judge, SqlParser
from lightning_modules.text_to_sql import TextToSql, show_readings
from lightning_modules.utterance_rewriter import UtteranceRewriter, read_checkpoint
from runner.life import build
from text2sql.dialogue import Example
from text2sql.evaluation import Gold, Scores, Verdict
from text2sql.parser import batches

WAYS = ("end-to-end", "decoupled")
HISTORY = 4  # utterances before a turn that the end-to-end model reads
_SECONDS = 30.0  # what one execution may take
Curve = dict[str, dict[str, dict[str, Any]]]
"""By way and share, for each seed, what a training reached."""


class Turns(pl.LightningDataModule):
    """Examples to train on, shuffled anew in every epoch.

    Args:
        turns: The examples.
        said: All turns there are, annotated or not: tokenizers are made of their words.
        batch_size: Examples in a batch.
        seed: Of the order.
    """

    def __init__(
        self, turns: Sequence[Example], said: Sequence[Example], batch_size: int, seed: int
    ) -> None:
        super().__init__()
        self.turns, self.said, self.batch_size, self.seed = turns, list(said), batch_size, seed

    def examples(self, split: str) -> list[Example]:
        """Return all turns, whatever part is asked for."""
        return self.said

    def train_dataloader(self) -> Any:
        """Return the loader of the batches."""
        order = torch.Generator().manual_seed(self.seed)
        turns: Any = self.turns
        return DataLoader(turns, self.batch_size, True, collate_fn=list, generator=order)


# --- models --------------------------------------------------------------------------------------


class Laboratory:
    """Data and settings of all trainings.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.settings = args, settings_of("delta", args.override)

    def data(self, share: float) -> MultiTurnSql:
        """Return the data with a share of the annotated in-domain turns."""
        node = {**self.settings["datamodule"], "annotated": share}
        datamodule: MultiTurnSql = build("datamodule", node)
        datamodule.setup("fit")
        return datamodule

    def parser(self, end_to_end: bool) -> SqlParser:
        """Return a parser to be trained, from `--parser` if it is given."""
        options = self._options("parser", self.args.parser)
        if end_to_end:
            options |= {"read": "utterance", "history": HISTORY}
        else:
            options |= {"read": "rewrite", "history": 0}
        return SqlParser(**options)

    def rewriter(self) -> UtteranceRewriter:
        """Return a rewriter to be trained, from the first `--rewriter` if one is given."""
        start = next(iter(self.args.rewriter.values()), None)
        options = self._options("rewriter", start)
        return UtteranceRewriter(**{**options, "mode": "supervised", "simplifier": False})

    def _options(self, part: str, start: str | None) -> dict[str, Any]:
        if start is not None:
            return {**read_checkpoint(start)["hyper_parameters"], "init": start}
        module = self.settings["module"]
        node = {**module[part], "optimizer": module["optimizer"], "schedule": module["schedule"]}
        return {key: value for key, value in node.items() if key != "_target_"}

    def fit(self, model: Any, turns: Sequence[Example], said: Sequence[Example], seed: int) -> None:
        """Train a model on some of the turns; without any it stays what it began with."""
        if turns:
            # Every model draws from the same seed, whatever was trained before it.
            pl.seed_everything(seed, workers=True, verbose=False)
            trainer = pl.Trainer(
                accelerator="gpu" if self.args.device == "cuda" else "cpu",
                devices=1,
                precision=self.args.precision,
                max_steps=self.args.steps,
                max_epochs=-1,
                gradient_clip_val=self.settings["trainer"]["gradient_clip_val"],
                limit_val_batches=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
            batch_size = self.settings["datamodule"]["batch_size"]
            trainer.fit(model, Turns(turns, said, batch_size, seed))
        elif model.init is None:
            raise ValueError(
                f"{type(model).__name__}: there is nothing to train on: single questions "
                "(--override datamodule.questions=N, or Spider's file in datamodule.train) or a "
                "run to begin with (--parser RUN)"
            )
        else:
            model.configure_model()
        model.to(self.args.device).eval()

    def end_to_end(self, datamodule: MultiTurnSql, seed: int) -> SqlParser:
        """Train the end-to-end model on the turns that have SQL."""
        model = self.parser(end_to_end=True)
        train = datamodule.examples("train")
        self.fit(model, _with_query(train), train, seed)
        return model

    def decoupled(
        self, datamodule: MultiTurnSql, seed: int
    ) -> tuple[SqlParser, UtteranceRewriter | None]:
        """Train a rewriter on the turns that have a rewrite, then a parser on those with SQL."""
        train = datamodule.examples("train")
        pairs = [example for example in train if example.history and example.rewrite]
        rewriter = self.rewriter() if pairs or self.args.rewriter else None
        if rewriter is not None:
            self.fit(rewriter, pairs, train, seed)
        asked = _with_query(train)
        bare = [example for example in asked if not example.rewrite]
        written = dict(zip(bare, in_batches(_rewriting(rewriter), bare, 32), strict=True))
        parser = self.parser(end_to_end=False)
        turns = [replace(e, rewrite=e.rewrite or written[e]) for e in asked]
        self.fit(parser, turns, train, seed)
        return parser, rewriter


def _with_query(turns: Sequence[Example]) -> list[Example]:
    return [e for e in turns if e.query is not None and e.schema is not None]


def _rewriting(rewriter: UtteranceRewriter | None) -> Callable[[Sequence[Example]], list[str]]:
    if rewriter is None:
        return lambda turns: [example.utterance for example in turns]
    return rewriter.rewrite


def in_batches(
    written: Callable[[Sequence[Any]], list[str]], inputs: Sequence[Any], size: int
) -> list[str]:
    """Return what is written for all inputs, a batch at a time."""
    batches = (inputs[start : start + size] for start in range(0, len(inputs), size))
    return [text for batch in batches for text in written(batch)]


def given_parts(args: argparse.Namespace) -> tuple[SqlParser, dict[str, UtteranceRewriter]]:
    """Load the parser and the rewriters that the command line names."""
    pipeline = TextToSql(parser_from=args.parser)
    pipeline.configure_model()
    assert pipeline.parser is not None, "configure_model loads it"
    rewriters = {}
    for name, run in args.rewriter.items():
        other = TextToSql(parser_from=args.parser, rewriter_from=run)
        other.configure_model()
        assert other.rewriter is not None, "configure_model loads it"
        rewriters[name] = other.rewriter.to(args.device).eval()
    return pipeline.parser.to(args.device).eval(), rewriters


def parsed(
    parser: SqlParser, turns: Sequence[Example], questions: Sequence[str], size: int
) -> list[str]:
    """Return the SQL of questions about the databases of turns, a batch at a time."""
    pairs = zip(turns, questions, strict=True)
    return in_batches(parser.parse, [(q, e.schema, e.database) for e, q in pairs], size)


# --- what is right -------------------------------------------------------------------------------


def judged(parser: SqlParser, turns: Sequence[Example], questions: Sequence[str]) -> list[Verdict]:
    """Parse questions and judge the SQL, each against its turn's."""
    judge = Judge(_SECONDS)
    written = parsed(parser, turns, questions, 32)
    return [judge(example, sql) for example, sql in zip(turns, written, strict=True)]


def arms(
    parser: SqlParser | None,
    rewriters: dict[str, UtteranceRewriter],
    end_to_end: SqlParser | None,
    turns: Sequence[Example],
) -> dict[str, list[Verdict]]:
    """Return the verdicts of every arm; gold rewrites are those of turns that have one."""
    found: dict[str, list[Verdict]] = {}
    if parser is not None:
        found["raw"] = judged(parser, turns, [example.utterance for example in turns])
        for name, rewriter in rewriters.items():
            found[name] = judged(parser, turns, in_batches(rewriter.rewrite, turns, 32))
        gold = [example for example in turns if example.rewrite]
        found["gold rewrite"] = judged(parser, gold, [e.rewrite or "" for e in gold])
    if end_to_end is not None:
        questions = [end_to_end.question(example) for example in turns]
        found["end-to-end"] = judged(end_to_end, turns, questions)
    return {name: verdicts for name, verdicts in found.items() if verdicts}


def arms_in_words(found: dict[str, list[Verdict]]) -> dict[str, Any]:
    """Return the match of every arm, also on the turns that have a gold rewrite."""
    golds = {(v.interaction, v.turn) for v in found.get("gold rewrite", [])}
    return {
        name: {
            **Scores(tuple(verdicts)).metrics(),
            "turns": len(verdicts),
            "by_turn": Scores(tuple(verdicts)).by_turn(),
            "where_gold_rewrites_exist": Scores(
                tuple(v for v in verdicts if (v.interaction, v.turn) in golds)
            ).metrics(),
        }
        for name, verdicts in found.items()
    }


# --- speed ---------------------------------------------------------------------------------------


def speed(
    parser: SqlParser,
    rewriter: UtteranceRewriter | None,
    turns: Sequence[Example],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Time rewriting, parsing and judging; medians of the rounds."""
    rewrite = _rewriting(rewriter)
    rates: dict[str, dict[str, float]] = {"rewriting": {}, "parsing": {}, "pipeline": {}}
    chosen, sql = turns[: args.timed], [""]
    for batch in args.batches:
        rewriting, parsing = [], []
        for number in range(args.rounds + 1):  # the first one fills caches
            start = perf_counter()
            questions = in_batches(rewrite, chosen, batch)
            between = perf_counter()
            sql = parsed(parser, chosen, questions, batch)
            if number:
                rewriting.append(between - start)
                parsing.append(perf_counter() - between)
        count, r, p = len(chosen), median(rewriting), median(parsing)
        rates["parsing"][str(batch)] = count / p
        rates["pipeline"][str(batch)] = count / (r + p)
        if rewriter is not None:
            rates["rewriting"][str(batch)] = count / r
    return {
        "turns_per_second": rates,
        "grammar_share": {
            str(batch): grammar_share(parser, chosen, batch) for batch in args.batches
        },
        "evaluator_turns_per_second": _judging(chosen, sql, args.rounds),
        "timed_turns": len(chosen),
    }


def grammar_share(parser: SqlParser, turns: Sequence[Example], batch: int) -> float:
    """Share of decoding spent on derivations, masks and the beam, not in the network."""
    assert parser.network is not None, "the parser is built"
    assert parser.featuriser is not None, "the parser is built"
    features = [parser.featuriser(e.utterance, e.schema, e.database) for e in turns if e.schema]
    whole = network = 0.0
    for start in range(0, len(features), batch):
        part = features[start : start + batch]
        for _, collated in batches(part, parser.device):
            with timed(parser.network, "encode", "_next") as seconds:
                begin = perf_counter()
                parser.network.parse(collated, parser.beam)
                whole += perf_counter() - begin
            network += sum(seconds.values())
    return 1 - network / whole


@contextmanager
def timed(network: torch.nn.Module, *names: str) -> Iterator[dict[str, float]]:
    """Add up the seconds that methods of a network take, by name."""
    seconds = dict.fromkeys(names, 0.0)

    def watched(name: str) -> Callable[..., Any]:
        method = getattr(network, name)

        def call(*given: Any) -> Any:
            start = perf_counter()
            result = method(*given)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name] += perf_counter() - start
            return result

        return call

    watching = {name: watched(name) for name in names}
    vars(network).update(watching)
    try:
        yield seconds
    finally:
        for name in names:
            del vars(network)[name]


def _judging(turns: Sequence[Example], sql: Sequence[str], rounds: int) -> dict[str, float]:
    """Turns per second that a fresh evaluator judges, exact match alone and with execution."""
    found = {}
    for kind in ("exact", "execution"):
        seconds = []
        for _ in range(rounds):
            judge = Judge(_SECONDS)
            for example in turns:
                assert example.schema is not None, "turns with SQL are about a database"
                judge.schemas[example.schema.db_id] = example.schema
                if example.database is not None:
                    judge.databases[example.schema.db_id] = example.database
            evaluator = judge.reading if kind == "exact" else judge.executing
            start = perf_counter()
            for example, text in zip(turns, sql, strict=True):
                gold = Gold(example.query or "", example.schema.db_id if example.schema else "")
                evaluator.judge(gold, text, example.interaction, example.turn)
            seconds.append(perf_counter() - start)
        found[kind] = len(turns) / median(seconds)
    return found


# --- annotation ----------------------------------------------------------------------------------


def curve(
    laboratory: Laboratory, known: Curve, console: Console, save: Callable[[Curve], Any]
) -> Curve:
    """Train both ways at every share and seed; what is known is not repeated."""
    args = laboratory.args
    found: Curve = {way: {**known.get(way, {})} for way in WAYS}
    for share in args.shares:
        missing = [
            (seed, way)
            for seed in args.seeds
            for way in WAYS
            if f"seed {seed}" not in found[way].get(f"{share:g}", {})
        ]
        if not missing:
            continue
        datamodule = laboratory.data(share)
        turns = _with_query(datamodule.examples(args.part))[: args.turns]
        annotated = max(datamodule.annotation["query"], datamodule.annotation["rewrite"])
        for seed, way in missing:
            start = perf_counter()
            if way == "decoupled":
                parser, rewriter = laboratory.decoupled(datamodule, seed)
                seconds = perf_counter() - start
                questions = in_batches(_rewriting(rewriter), turns, 32)
            else:
                parser = laboratory.end_to_end(datamodule, seed)
                seconds = perf_counter() - start
                questions = [parser.question(example) for example in turns]
            scores = Scores(tuple(judged(parser, turns, questions)))
            row = {
                **scores.metrics(),
                "by_turn": scores.by_turn(),
                "annotated_turns": annotated,
                "annotation": dict(datamodule.annotation),
                "seconds": seconds,
            }
            found[way].setdefault(f"{share:g}", {})[f"seed {seed}"] = row
            console.print(
                f"share {share:g} ({annotated} annotated turns), seed {seed}, {way}: question "
                f"match {row['exact']:.1%}, {seconds:.0f} s of training",
                highlight=False,
                soft_wrap=True,
            )
            save(found)
    return found


def points(found: Curve, way: str, metric: str = "exact") -> list[tuple[int, list[float]]]:
    """Return the number of annotated turns and the match of all seeds, fewest turns first."""
    return sorted(
        (next(iter(rows.values()))["annotated_turns"], [row[metric] for row in rows.values()])
        for rows in found.get(way, {}).values()
        if rows
    )


def ledger_of(found: Curve) -> Ledger | None:
    """Return what the decoupled way saved; None before both ways were trained."""
    theirs, ours = points(found, "end-to-end"), points(found, "decoupled")
    if not theirs or not ours or not theirs[-1][0]:
        return None
    most, wanted = theirs[-1][0], mean(theirs[-1][1])
    reached = next(((turns, mean(v)) for turns, v in ours if mean(v) >= wanted), None)
    match = Quality("question match, exact", reached[1] if reached else mean(ours[-1][1]), wanted,
                    better="higher")  # fmt: skip
    notes: tuple[str, ...] = (
        f"Question match {wanted:.1%} is what end-to-end reaches with {most} annotated turns.",
    )
    if reached is None:
        notes = (*notes, "Decoupled does not reach it with any number that was tried.")
        return Ledger("decoupled", "end-to-end", (), (match,), notes)
    saving = Saving("annotated in-domain turns at equal question match", "turns", reached[0], most)
    return Ledger("decoupled", "end-to-end", (saving,), (match,), notes)


def draw(found: Curve, path: Path) -> Path:
    """Draw question match over the number of annotated turns: means, and all seeds as points."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axis = figure.subplots()
    for way, colour in zip(WAYS, COLOURS, strict=False):
        line = points(found, way)
        axis.plot([x for x, _ in line], [100 * mean(y) for _, y in line], "o-", color=colour,
                  label=way)  # fmt: skip
        for x, values in line:
            axis.plot([x] * len(values), [100 * y for y in values], ".", color=colour, alpha=0.5)
    axis.set_xscale("symlog", linthresh=10)
    axis.set(xlabel="annotated in-domain turns", ylabel="question match (exact), %", ylim=(0, None))
    axis.set_xlim(left=-1)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150)
    return path


# --- the command ---------------------------------------------------------------------------------


def asked(args: argparse.Namespace) -> dict[str, Any]:
    """What a training of the curve depends on, but for share and seed."""
    names = (
        "root",
        "data",
        "override",
        "parser",
        "rewriter",
        "steps",
        "part",
        "turns",
        "precision",
    )
    return {name: getattr(args, name) for name in names}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delta", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns and steps, minutes")
    parser.add_argument("--json", type=Path, help="write one JSON object (and the curve) here")
    parser.add_argument("--root", help="folder of a data set; else generated dialogues")
    parser.add_argument("--data", default="sparc", choices=("sparc", "cosql"), help="its layout")
    parser.add_argument("--parser", metavar="RUN", help="a run or checkpoint of SqlParser")
    parser.add_argument(
        "--rewriter", action="append", default=[], metavar="[NAME=]RUN", help="of UtteranceRewriter"
    )
    parser.add_argument("--end-to-end", metavar="RUN", help="a SqlParser that reads the history")
    parser.add_argument("--curve", action="store_true", help="question match against annotation")
    parser.add_argument("--shares", type=float, nargs="+", help="0 0.01 0.1 1 (quick: 0 0.1 1)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of trainings (1 2; quick: 1)")
    parser.add_argument("--steps", type=int, help="of every model (the experiment's; quick: 60)")
    parser.add_argument("--part", default="test", choices=("val", "test"), help="what is scored")
    parser.add_argument("--turns", type=int, help="scored at most (all; quick: 48)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="timed")
    parser.add_argument("--timed", type=int, help="turns that are timed (128; quick: 32)")
    parser.add_argument("--rounds", type=int, help="of the timings (3; quick: 1)")
    parser.add_argument("--no-speed", action="store_true", help="leave the timings out")
    parser.add_argument("--no-arms", action="store_true", help="leave the comparison out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--override", action="append", default=[], help="of experiment=delta")
    args = parser.parse_args(arguments)
    named = [run.rpartition("=") for run in args.rewriter]
    args.rewriter = {name or "rewritten": run for name, _, run in named}
    if len(args.rewriter) < len(named):
        parser.error("--rewriter: give several runs names: NAME=RUN")
    if args.rewriter and not args.parser:
        parser.error("--rewriter: needs --parser RUN, which reads its rewrites")
    sizes = ["dialogues=300", "test_dialogues=40"] if args.quick else []
    single = [*sizes, "questions=300" if args.quick else "questions=2000"]
    if args.root:
        own = [f"datamodule={args.data}", f"datamodule.root={args.root}"]
    else:
        own = [f"datamodule.{size}" for size in single]
    args.override = [*own, *args.override]
    args.shares = args.shares or ([0.0, 0.1, 1.0] if args.quick else [0.0, 0.01, 0.1, 1.0])
    args.seeds = args.seeds or ([1] if args.quick else [1, 2])
    args.turns = args.turns or (48 if args.quick else None)
    args.timed = args.timed or (32 if args.quick else 128)
    args.rounds = args.rounds or (1 if args.quick else 3)
    if args.steps is None:
        steps = settings_of("delta", args.override)["trainer"]["max_steps"]
        args.steps = 60 if args.quick else steps
    return args


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its tables and write its JSON."""
    args = parse(arguments)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    console = Console()
    laboratory = Laboratory(args)
    result: dict[str, Any] = {
        "settings": asked(args),
        "seeds": args.seeds,
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "versions": versions(),
    }
    before: Curve = {}
    if args.json and args.json.exists():
        written = json.loads(args.json.read_text(encoding="utf-8"))
        if written["settings"] == asked(args):
            result |= {key: written[key] for key in ("curve", "ledger") if key in written}
            before = written.get("curve", {})
    if not (args.no_speed and args.no_arms):
        result |= compare(laboratory, console)
    if args.curve:

        def save(found: Curve) -> None:
            result["curve"] = found
            if args.json:
                args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

        found = curve(laboratory, before, console, save)
        save(found)
        console.print(curve_table(found))
        ledger = ledger_of(found)
        if ledger is not None:
            result["ledger"] = ledger.to_dict()
            console.print(ledger.table())
        if args.json:
            draw(found, args.json.with_suffix(".png"))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def compare(laboratory: Laboratory, console: Console) -> dict[str, Any]:
    """Time and score what was given, or what is trained here on all annotation."""
    args = laboratory.args
    datamodule = laboratory.data(1.0)
    turns = _with_query(datamodule.examples(args.part))[: args.turns]
    parser: SqlParser | None = None
    end_to_end: SqlParser | None = None
    rewriters: dict[str, UtteranceRewriter] = {}
    if args.parser:
        parser, rewriters = given_parts(args)
    if args.end_to_end:
        pipeline = TextToSql(parser_from=args.end_to_end)
        pipeline.configure_model()
        end_to_end = pipeline.parser
        assert end_to_end is not None, "configure_model loads it"
        end_to_end.to(args.device).eval()
    if parser is None and end_to_end is None:
        parser, rewriter = laboratory.decoupled(datamodule, args.seeds[0])
        rewriters = {} if rewriter is None else {"rewritten": rewriter}
        if not args.no_arms:
            end_to_end = laboratory.end_to_end(datamodule, args.seeds[0])
    result: dict[str, Any] = {"data": datamodule.describe()}
    if not args.no_speed and parser is not None:
        result["speed"] = speed(parser, next(iter(rewriters.values()), None), turns, args)
        console.print(speed_table(result["speed"]))
    if not args.no_arms:
        found = arms(parser, rewriters, end_to_end, turns)
        result["arms"] = arms_in_words(found)
        show_readings(found, console)
    return result


def speed_table(found: dict[str, Any]) -> Table:
    """Turns per second by batch, and the cost of the grammar."""
    table = Table(title=f"turns per second, {found['timed_turns']} turns", title_justify="left")
    batches = list(found["grammar_share"])
    for name in ("", *(f"batch {batch}" for batch in batches)):
        table.add_column(name, justify="right" if name else "left")
    for name, rates in found["turns_per_second"].items():
        table.add_row(name, *(f"{rates[b]:.1f}" if b in rates else "-" for b in batches))
    table.add_row(
        "grammar, share of decoding", *(f"{found['grammar_share'][b]:.1%}" for b in batches)
    )
    judging = found["evaluator_turns_per_second"]
    table.caption = (
        f"evaluator: {judging['exact']:,.0f} turns per second exact match, "
        f"{judging['execution']:,.0f} with execution"
    )
    return table


def curve_table(found: Curve) -> Table:
    """Question match by number of annotated turns, means over seeds and each seed."""
    table = Table(title="question match (exact), %, by annotated in-domain turns")
    table.add_column("annotated turns", justify="right")
    for way in WAYS:
        table.add_column(way, justify="right")
    by_way = {way: dict(points(found, way)) for way in WAYS}
    for turns in sorted({turns for line in by_way.values() for turns in line}):
        cells = []
        for way in WAYS:
            values = by_way[way].get(turns, [])
            single = ", ".join(f"{100 * value:.1f}" for value in values)
            cells.append(f"{100 * mean(values):.1f} ({single})" if values else "-")
        table.add_row(str(turns), *cells)
    return table


if __name__ == "__main__":
    main()

"""run.json, the record of a run: its type, how it is written, and how old ones are read.

`python -m reports.run_record` writes docs/RUN_FOLDER.md from what stands here. Importing this is
cheap, so that a thousand records are read in a second.
"""

from __future__ import annotations

import json
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from atomic import replacing
from ledger import Ledger

RUN_FILE = "run.json"
LOCK_FILE = ".lock"

METRICS = dict[str, float | None]

Made = TypeVar("Made")


class NoRun(ValueError):
    """A folder that holds no readable run, or a word that names none; says which and why."""


@dataclass
class Git:
    """The state of the code."""

    commit: Annotated[str | None, "The commit; null outside of git."] = None
    dirty: Annotated[bool | None, "Whether files differed from it; null outside of git."] = None


@dataclass
class SweepJob:
    """Which job of which sweep a run is."""

    id: Annotated[
        str, "The same for all jobs of a sweep: its folder's name, its study's id, or W&B's id."
    ]
    job: Annotated[int | None, "Its number, of a search the trial's, from 1; null at W&B."] = None
    jobs: Annotated[int | None, "How many there are; null where the sweeper decides later."] = None


@dataclass
class Hardware:
    """What the run had to compute with."""

    cpu: Annotated[str, "The processor's name."] = ""
    cores: Annotated[int, "Cores that the process may use."] = 0
    threads: Annotated[int, "Threads that PyTorch uses for one operation."] = 0
    gpus: Annotated[list[str], "Names of the GPUs of this process's machine."] = field(
        default_factory=list
    )


@dataclass
class PeakMemory:
    """The most memory that the first process held at once, in bytes."""

    cpu: Annotated[int | None, "Resident memory, from the beginning of this run."] = None
    gpu: Annotated[int | None, "Of the first GPU, in tensors; null without one."] = None


@dataclass
class RunRecord:
    """What run.json holds. Texts that look like keys or passwords are written as ***."""

    id: Annotated[str, "The run's id: in the folder's name, in checkpoints, and in W&B."]
    task: Annotated[str, "train, validate or test."]
    status: Annotated[
        str,
        "running, finished, failed or interrupted. A killed run stays running; `ls` says killed.",
    ]
    name: Annotated[str, "The run's name: the folder above, and the group in W&B."] = ""
    experiment: Annotated[
        str | None, "The experiment that was chosen, also under name= and debug=; null: none."
    ] = None
    reason: Annotated[str | None, "Why the run failed or was interrupted."] = None
    started: Annotated[str | None, "When the run was first started; UTC."] = None
    ended: Annotated[str | None, "When it ended; UTC."] = None
    seed: Annotated[int | None, "The seed."] = None
    command: Annotated[
        str | None, "The command line (of a sweep: the whole sweep's); null if Python started it."
    ] = None
    overrides: Annotated[list[str], "What this run's command line sets, a job's own values."] = (
        field(default_factory=list)
    )
    sweep: Annotated[SweepJob | None, "Which job of which sweep it is; null outside of sweeps."] = (
        None
    )
    config_hash: Annotated[str, "Of all settings that decide a result."] = ""
    arm: Annotated[
        str, "The same without seeds and how to resume: runs of one arm differ by chance only."
    ] = ""
    git: Annotated[Git, "The state of the code."] = field(default_factory=Git)
    versions: Annotated[dict[str, str], "Python's version, and those of packages."] = field(
        default_factory=dict
    )
    hardware: Annotated[Hardware, "What the run had to compute with."] = field(
        default_factory=Hardware
    )
    resumed: Annotated[
        list[dict[str, str]], "Each time it was resumed: when (`at`) and from which `checkpoint`."
    ] = field(default_factory=list)
    seconds: Annotated[
        float | None,
        "From this record's first writing to the end; of a resumed run with the training before, "
        "up to the checkpoint from which it was resumed.",
    ] = None
    phases: Annotated[
        dict[str, float],
        "Seconds of the run's parts since it was started or resumed last: preparation (building "
        "model and data, before the record), training, validation (the last one), test.",
    ] = field(default_factory=dict)
    peak_memory: Annotated[PeakMemory, "The most memory that was held, in bytes."] = field(
        default_factory=PeakMemory
    )
    metrics: Annotated[METRICS, "The last figures, by name; null: not a finite number."] = field(
        default_factory=dict
    )
    ledgers: Annotated[dict[str, Ledger], "What each method saved, by its config key."] = field(
        default_factory=dict
    )
    data: Annotated[
        dict[str, Any], "What the data is and how large, in the datamodule's words."
    ] = field(default_factory=dict)
    checkpoint: Annotated[
        str | None, "The newest, from the run folder; of validate and test the one they measured."
    ] = None
    best_checkpoint: Annotated[str | None, "The best one by the metric that is watched."] = None


FILES = {
    RUN_FILE: "The record of the run, fields below. Always whole, and there before the first step.",
    "config.yaml": "The config with all values filled in; resume, test and export read it.",
    "metrics.csv": "A row for each step at which something was logged, on disk at once; `tokens` "
    "and `FLOPs` (in closed form, nothing recomputed) are what the training had spent by then.",
    "checkpoints/step-*.ckpt": "The newest checkpoints, to go on from.",
    "checkpoints/best.ckpt": "The best one by callbacks.checkpoint.monitor.",
    "checkpoints/*.unused": "Newer than the one from which the run was resumed: not used any more.",
    "plots/curves.png": "Losses over steps and FLOPs, beside a dense run's; what the method logs.",
    "plots/*.png": "What a method or module draws.",
    "tokenizer/*": "The tokenizer, if the data has one, and which one it is a copy of.",
    "model/*": "Of a pretrained language model what is no weight: its checkpoints need no base.",
    "minimal_pairs.json": "task=minimal_pairs: the share of right pairs by file, and of which "
    "checkpoint.",
    "lm_eval.json": "task=lm_eval: every metric, and of which checkpoint.",
    "samples.jsonl": "What the model wrote at each validation, a line each.",
    "export/*": "task=export: a folder for transformers' from_pretrained for each checkpoint.",
    "search/*.png": "task=search: what was found, a picture for each query.",
    "traceback.txt": "Where a failed run failed.",
    "fit-profile.txt": "debug=profile: every hook and its time.",
    LOCK_FILE: "Held while a process is at work in the folder.",
}
"""Every file of a run folder by its pattern; what ends with /* is a whole folder."""


def run_folder(path: Path) -> Path | None:
    """Return the run folder that a path is, or lies in; None if it is in none."""
    for folder in (path, *path.resolve().parents):
        if (folder / RUN_FILE).exists():
            return folder
    return None


def read_record(folder: Path) -> RunRecord:
    """Return the run.json in a run folder; what an older program did not write has its default.

    Raises:
        NoRun: It is missing, damaged, or no record of a run.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NoRun(f"{folder}: no {RUN_FILE}") from error
    except (ValueError, RecursionError) as error:
        raise NoRun(f"{path}: damaged, {error}") from error
    missing = {"id", "task", "status"} - (content.keys() if isinstance(content, dict) else set())
    if missing:
        raise NoRun(f"{path}: no record of a run, {', '.join(sorted(missing))} missing")
    if "name" not in content:  # `experiment` was the run's name
        name = content.get("experiment") or folder.parent.name
        content |= {"name": name, "experiment": None}
    try:
        return _made(RunRecord, content)
    except (TypeError, ValueError) as error:
        raise NoRun(f"{path}: no record of a run, {error}") from error


def read_measured(path: Path) -> tuple[METRICS, str]:
    """Return the metrics in a file that a task has written beside run.json, and the task's keys.

    Raises:
        NoRun: It is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found: METRICS = _value("metrics", METRICS, content["metrics"])
        keys = json.dumps(content.get("keys"))
    except (LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise NoRun(f"{path}: damaged, {error}") from error
    return found, keys


def write_record(folder: Path, record: RunRecord) -> None:
    """Write run.json, with secrets as ***; JSON has no NaN and no infinity, they become null."""
    write_json(folder / RUN_FILE, without_secrets(asdict(record)))


def _made(kind: type[Made], content: Mapping[str, Any]) -> Made:
    """Build a dataclass of what is known of it; TypeError names a value of another type."""
    hints = _hints(cast(Any, kind))
    return kind(**{n: _value(n, hints[n], value) for n, value in content.items() if n in hints})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _value(name: str, hint: Any, value: Any) -> Any:
    """Return what JSON's containers stand for, by its type, to their innermost values."""
    for option in _options(hint):
        plain, inner = get_origin(option) or option, get_args(option)
        if is_dataclass(plain) and isinstance(plain, type) and isinstance(value, dict):
            return _made(plain, value)
        if plain is dict and isinstance(value, dict):
            return {key: _value(f"{name}.{key}", inner[1], each) for key, each in value.items()}
        if plain in (list, tuple) and isinstance(value, list):
            return plain(_value(f"{name}[{n}]", inner[0], each) for n, each in enumerate(value))
        if plain is Literal:
            fits = value in inner
        else:
            fits = plain is Any or isinstance(value, (int, float) if plain is float else plain)
        if fits:
            return value
    raise TypeError(f"{name} is {value!r:.60}")


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; JSON has no NaN and no infinity, they become null."""
    text = json.dumps(_finite(content), indent=2, default=str, allow_nan=False)
    with replacing(path) as file:
        file.write(text + "\n")


def _finite(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return None if isinstance(node, float) and not math.isfinite(node) else node


# --- secrets

_SECRET = r"(?:api_?key|secret|password|passwd|(?:access|auth|bearer|hf|hub|use_auth)_?token)"
_SECRET_NAME = re.compile(rf"(?i)(?:\w+_)?{_SECRET}\Z|token\Z")
_SECRET_SETTING = re.compile(
    rf"(?i)((?:\b|_)(?:{_SECRET}|(?<!\w)token)['\"]?\s*[=:]\s*)[^\s,}}\]]+"
)
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|wandb_v\d_\w{16,}|sk-[\w-]{20,}|ghp_\w{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s:@]+(?=@)"
)


def without_secrets(node: Any) -> Any:
    """Return plain containers in which keys, tokens and passwords are ***.

    They are known by the names of their settings, by their form, and by the values of environment
    variables that are named like secrets.
    """
    variables = {
        value
        for name, value in os.environ.items()
        if len(value) >= 8 and re.search(r"(?i)(key|token|secret|password)\Z", name)
    }
    return _masked(node, sorted(variables, key=len, reverse=True))


def _masked(node: Any, secrets: list[str]) -> Any:
    if isinstance(node, Mapping):
        return {
            key: "***"
            if isinstance(value, str) and value and _SECRET_NAME.match(str(key))
            else _masked(value, secrets)
            for key, value in node.items()
        }
    if isinstance(node, list | tuple):
        return [_masked(value, secrets) for value in node]
    if not isinstance(node, str):
        return node
    for secret in secrets:
        node = node.replace(secret, "***")
    return _SECRET_VALUE.sub("***", _SECRET_SETTING.sub(r"\1***", node))


# --- docs/RUN_FOLDER.md


def described() -> str:
    """Return docs/RUN_FOLDER.md: every file of a run folder, and every field of run.json."""
    files = "".join(f"| `{name}` | {words} |\n" for name, words in FILES.items())
    rows = "".join(f"| `{name}` | {kind} | {words} |\n" for name, kind, words in _rows(RunRecord))
    return f"""# The run folder

Written from `reports/run_record.py` by `python -m reports.run_record`; a test keeps the two equal.

A run that trains, validates or tests leaves a folder `OUTPUT_DIR/NAME/TIME-ID`: `paths.output_dir`
and `name`. A file is there once its part of the run has come.

| file | holds |
|---|---|
{files}
W&B's files lie beside the runs, unless `logger=csv`: a folder `offline-run-TIME-ID` for each run in
`OUTPUT_DIR/wandb`.

## run.json

{RunRecord.__doc__}
`reports.run_record.read_record(FOLDER)` reads it, and those of older versions too: a field that
was not written has its default.

| field | type | holds |
|---|---|---|
{rows}"""


def _rows(kind: type[Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for name, annotation in get_type_hints(kind, include_extras=True).items():
        hint, words = get_args(annotation)
        inner = next((option for option in _options(hint) if is_dataclass(option)), None)
        optional = type(None) in get_args(hint)
        plain = str(hint) if get_args(hint) else hint.__name__
        shown = (
            "object" if inner is not None else plain.replace("typing.", "").replace("ledger.", "")
        )
        shown = f"{shown.removesuffix(' | None')} or null" if optional else shown
        yield f"{prefix}{name}", shown.replace(" | ", " or "), words
        if inner is not None:
            yield from _rows(cast(type[Any], inner), f"{prefix}{name}.")


if __name__ == "__main__":
    target = Path(__file__).resolve().parent.parent / "docs" / "RUN_FOLDER.md"
    target.write_text(described(), encoding="utf-8")
    print(target)

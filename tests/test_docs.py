"""What the pages say is so: commands are accepted as they stand, links lead somewhere.

`Reader` goes through a page from top to bottom, as somebody would who types what stands there. The
fast test has each command checked as `run.py` checks it; the slow one runs it, with fewer steps.
"""

import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.errors import HydraException

from runner.errors import MissingPackage
from runner.validate import checked

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    *("README.md", "docs/START.md", "docs/ADDING.md", "docs/LANGUAGE_MODELS.md", "docs/SWEEPS.md"),
    "CONTRIBUTING.md",
)
ALL_PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")}
# Programs of others: what they are told is not ours to check, beyond the files that it names.
FOREIGN = {"docker", "git", "pip", "pre-commit", "source", "uv", "wandb", "eval", "torchrun"}


def commands(page: str) -> list[str]:
    """The lines of a page's code blocks that have no language, without what `#` explains."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M)
    text = "\n".join(block for language, block in blocks if not language)
    lines = re.sub(r"\\\n *", "", text).splitlines()
    return [
        line.strip() for line in (re.sub(r" +# .*", "", line) for line in lines) if line.strip()
    ]


def given(folder: Path) -> None:
    """Put the files into a folder that a reader is said to have."""
    import pydoc_data.topics

    text = "\n".join(pydoc_data.topics.topics.values())
    for place, name in enumerate(("notes", "more")):
        (folder / name).mkdir()
        part = text[place * 100_000 : (place + 1) * 100_000]
        (folder / name / "a.txt").write_text(part)
        (folder / name / "a.jsonl").write_text(
            "".join(json.dumps({"text": t}) + "\n" for t in part.split("\n\n") if t)
        )
    said = ("user", "Double {0}."), ("assistant", "{0} and {0} make {1}.")
    chats = [
        {"messages": [{"role": r, "content": c.format(n, 2 * n)} for r, c in said]}
        for n in range(400)
    ]
    (folder / "chats").mkdir()
    (folder / "chats" / "a.jsonl").write_text("".join(json.dumps(c) + "\n" for c in chats))
    (folder / "blimp").mkdir()
    pair = {"sentence_good": "The dogs bark.", "sentence_bad": "The dogs barks."}
    (folder / "blimp" / "agreement.jsonl").write_text(json.dumps(pair) + "\n")
    (folder / "spider" / "database").mkdir(parents=True)
    for name in ("train_spider", "dev", "tables"):
        (folder / "spider" / f"{name}.json").write_text("[]")
    database = sqlite3.connect(folder / "chinook.sqlite")
    database.execute("CREATE TABLE artist (name TEXT, albums INTEGER)")
    database.close()


class Reader:
    """Types the commands of a page, in a folder of its own.

    Args:
        folder: Where; it holds what `given` puts there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.exported: Path | None = None

    def type(self, line: str) -> None:
        """Do what a line says, with the newest run in the place of RUN."""
        for runs in re.findall(r"(outputs/[\w-]+)/RUN", line):
            found = sorted(path for path in (self.folder / runs).glob("*") if path.is_dir())
            assert found, f"{line}: no command above made a run in {runs}"
            line = line.replace(f"{runs}/RUN", f"{runs}/{found[-1].name}")
        if "EXPORT" in line:
            assert self.exported is not None, f"{line}: nothing was exported above"
            line = line.replace("EXPORT", str(self.exported))
        words = shlex.split(line)
        if words[:2] == ["python", "run.py"]:
            self.run(line, words[2:])
        elif words[:2] == ["python", "-m"]:
            self.module(line, words[2], words[3:])
        elif words[0] == "make":
            self.make(line, words[1:])
        else:
            assert words[0] in FOREIGN or (ROOT / words[0]).is_file(), f"{line}: no such command"

    def run(self, line: str, overrides: list[str]) -> None:
        """Have `run.py` check it, and leave the folder that it would leave."""
        overrides = [each for each in overrides if "interval(" not in each]  # a search's
        if (overrides[0][0] == "-" and overrides[0] != "-m") or "--cfg" in overrides:
            return
        lists = [[each] for each in overrides]
        if "-m" in overrides:
            swept = (each.partition("=") for each in overrides if each != "-m")
            lists = [[f"{key}={value}" for value in values.split(",")] for key, _, values in swept]
            lists = [values[:1] if values[0].startswith("seed=") else values for values in lists]
        # Of a sweep as many jobs as it takes to have each value in one; any seed is as good.
        jobs = range(max(map(len, lists))) if "-m" in overrides else range(1)
        for job in jobs:
            try:
                settings = checked([values[job % len(values)] for values in lists])
            except (
                MissingPackage
            ):  # the page says how to install it: what it brings is not known here
                continue
            if settings["task"] == "train" and not settings["dry_run"]:
                self.leave(settings)
            if settings["task"] == "export":
                self.exported = Path(settings["ckpt_path"]) / "export" / "step-00000001"
                tokenizer = Path(settings["ckpt_path"]) / "tokenizer"
                shutil.copytree(tokenizer, self.exported, dirs_exist_ok=True)
                architecture = settings["module"]["architecture"] or self.architecture
                (self.exported / "config.json").write_text(json.dumps(architecture))

    def leave(self, settings: dict[str, Any]) -> None:
        """Write a run folder, as far as the checks of other commands read it."""
        folder = self.folder / "outputs" / settings["name"] / "2026-01-01_00-00-00-aaaaaaaa"
        (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
        own = {**settings, "paths": {**settings["paths"], "run_dir": str(folder)}}
        (folder / "config.yaml").write_text(yaml.safe_dump(own))
        record = {"id": "aaaaaaaa", "task": "train", "status": "finished"}
        (folder / "run.json").write_text(json.dumps(record))
        self.architecture = settings["module"].get("architecture") or self.architecture

    architecture: Any = None

    def module(self, line: str, name: str, arguments: list[str]) -> None:
        """See that a module exists, and that its source names its options."""
        path = ROOT.joinpath(*name.split("."))
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        if name.partition(".")[0] not in ROOMS:
            return
        assert path.is_file(), f"{line}: no such module"
        source = path.read_text()
        options = [each for each in arguments if each.startswith("--")]
        assert [each for each in options if f'"{each}"' not in source] == [], line

    def make(self, line: str, arguments: list[str]) -> None:
        """See that the targets and the settings of a Makefile exist."""
        makefile = (ROOT / "Makefile").read_text()
        for word in arguments:
            name, is_setting, _ = word.partition("=")
            pattern = rf"^{re.escape(name)} *[?:]?=" if is_setting else rf"^{re.escape(name)}:"
            assert re.search(pattern, makefile, re.M), f"{line}: make knows no {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_accepted(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", 40 * "0")
    reader = Reader(tmp_path)
    lines = commands(page)
    assert lines
    for line in lines:
        reader.type(line)


def test_a_command_that_is_wrong_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reader = Reader(tmp_path)
    wrong = [
        "python run.py experiment=est_gpt2 datamodule.blocksize=2",
        "python run.py task=export ckpt_path=outputs/est_gpt2/RUN",
        "python run.py experiment=sat_cpt module.pretrained=EXPORT",
        "python -m benchmarks.nothing",
        "python -m benchmarks.picture --nothing",
        "make nothing",
        "nothing",
    ]
    for line in wrong:
        with pytest.raises((AssertionError, ValueError, HydraException)):
            reader.type(line)


def said_in_headers() -> list[list[str]]:
    """What the first comments of EST's and SAT's experiments tell to set beside them, by line."""
    said = []
    for path in sorted((ROOT / "conf/experiment").glob("[es][sa]t_*.yaml")):
        for line in path.read_text().partition("\ndefaults:")[0].splitlines():
            given = re.findall(r"(?<![\w./])[a-z_]+(?:\.[a-z_]+)*=[\w]+", line)
            others = [each for each in given if not each.startswith("experiment=")]
            if others:
                said.append([f"experiment={path.stem}", *others])
    return said


def test_what_the_header_of_an_experiment_says_is_accepted() -> None:
    said = said_in_headers()
    assert ["experiment=est_tinyllama", "callbacks=est_tinyllama_paper"] in said
    for overrides in said:
        checked(overrides)


# --- links and files ------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", h)).strip() for h in headings)
    return {each.lower().replace(" ", "-") for each in plain}


@pytest.mark.parametrize("page", ALL_PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    path = ROOT / page
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize(
    "page", [page for page in ALL_PAGES if not re.match("docs/(LOG|measurements)", page)]
)
def test_every_file_of_ours_that_a_page_names_exists(page: str) -> None:
    """The log speaks of files as they were."""
    places = "|".join([*ROOMS, "conf", "docs", "sweeps"])
    named = re.findall(rf"`((?:{places})/[\w./-]+)`", (ROOT / page).read_text())
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert missing == []


def test_every_extra_that_a_page_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {
        extra
        for page in PAGES
        for line in commands(page)
        for extra in re.findall(r"'\.\[([\w,-]+)\]'|--extra (\w+)", line)
    }
    flat = {name for pair in named for each in pair if each for name in each.split(",")}
    assert flat
    assert flat <= extras.keys()


def test_the_log_is_a_list_of_verdicts_newest_first() -> None:
    head, *entries = re.split(r"^## ", (ROOT / "docs/LOG.md").read_text(), flags=re.M)
    headings = [entry.partition("\n")[0] for entry in entries]
    assert re.findall(r"^\* \[(.+)\]\(#", head, re.M) == headings
    dates = [heading[:10] for heading in headings]
    assert dates == sorted(dates, reverse=True)
    assert [e.partition("\n")[0] for e in entries if len(e.strip().splitlines()) > 21] == []


# --- the slow way ---------------------------------------------------------------------------------

# Fewer steps than the page's command has, by experiment; and what this machine need not have.
LANGUAGE = (
    *("trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.limit_val_batches=1"),
    *("trainer.checkpoint_every=3", "datamodule.batch_size=2", "trainer=cpu"),
)
SHORTER = {
    "est": LANGUAGE,
    "sat": (*LANGUAGE, "callbacks.samples.prompts=2"),
    "dlch": ("trainer.max_steps=20", "datamodule.options.count=300", "trainer=cpu"),
    "delta": (
        *("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.limit_val_batches=1"),
        *("datamodule.dialogues=40", "datamodule.test_dialogues=10", "trainer=cpu"),
    ),
}
ELSEWHERE = (
    *("delta_parser_spider", "smollm2", "wandb.mode=online", "wandb.entity=", "devices=8"),
    *("lm_eval", "hub=", "launcher=ray", "launcher=submitit", "sweeper=search"),
)


# Is started once a page: imports of libraries take ten seconds, and a command forks it.
PROGRAMS = """
import json, os, runpy, sys
import datasets, pytorch_lightning, torch, transformers, wandb
sys.path.insert(0, os.getcwd())
for line in sys.stdin:
    arguments, said = json.loads(line)
    if os.fork() == 0:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = open(0)
        for stream in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv = ["run.py", *arguments]
        runpy.run_path(os.path.abspath("run.py"), run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


class Typist(Reader):
    """A reader who runs the commands, each shortened.

    Args:
        folder: A clone of the repository, with what `given` puts there.
        programs: A process of PROGRAMS in it.
    """

    def __init__(self, folder: Path, programs: "subprocess.Popen[str]") -> None:
        super().__init__(folder)
        self.programs = programs

    def run(self, line: str, overrides: list[str]) -> None:
        """Run it; remember what it exports."""
        if any(word in line for word in ELSEWHERE):
            return
        trains = [each for each in overrides if each.startswith("experiment=")]
        begins = next(iter(trains), "").partition("=")[2]
        short = next((o for name, o in SHORTER.items() if begins.startswith(name)), ())
        if begins.startswith("sat") and "module.pretrained" not in line:
            short += (f"module.pretrained='experiment:base_llama {' '.join(LANGUAGE)}'",)
        if "-m" in overrides:
            # Keys of what is swept over are not there yet when Hydra looks for them.
            short = tuple(f"++{each}" if "." in each else each for each in short)
        options = {"--cfg", "--help", "-sc"} & {*overrides}
        self.program(*overrides, *(() if options else short))
        written = re.findall(r"exported: (\S+)", self.said)
        self.exported = self.folder / written[-1] if written else self.exported

    def module(self, line: str, name: str, arguments: list[str]) -> None:
        """Run what draws or reads; ask what measures for its help only."""
        super().module(line, name, arguments)
        quick = name.partition(".")[0] != "benchmarks" or name == "benchmarks.picture"
        if name.partition(".")[0] in ROOMS:
            self.call(sys.executable, "-m", name, *(arguments if quick else ["--help"]))

    def make(self, line: str, arguments: list[str]) -> None:
        """Run what lists or checks; of the rest have make say what it would do."""
        if {*arguments} <= {"list", "validate"}:
            installed = f"{sys.prefix}/.installed"
            self.call("make", f"VENV={sys.prefix}", "-o", installed, *arguments)
            return
        (self.folder / ".venv").mkdir(exist_ok=True)
        self.call("make", "-n", *arguments)

    def program(self, *arguments: str) -> None:
        """Do what `python run.py ARGUMENTS` does."""
        stdin, stdout, file = self.programs.stdin, self.programs.stdout, self.folder / "said.txt"
        assert stdin is not None
        assert stdout is not None
        file.unlink(missing_ok=True)
        stdin.write(json.dumps([arguments, str(file)]) + "\n")
        stdin.flush()
        code = int(stdout.readline())
        self.said = file.read_text()
        assert code == 0, f"run.py {shlex.join(arguments)}\n{self.said}"

    def call(self, *command: str) -> None:
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, input="", timeout=600
        )
        self.said = done.stdout
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_runs(
    page: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a clone; what one page tokenises the next ones find."""
    monkeypatch.setenv("FRUGAL_CACHE", str(cache_dir))
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, tracked.stdout.split("\0")):
        if not name.startswith("tests/"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    given(tmp_path)
    command, piped = [sys.executable, "-c", PROGRAMS], subprocess.PIPE
    with subprocess.Popen(command, cwd=tmp_path, stdin=piped, stdout=piped, text=True) as programs:
        typist = Typist(tmp_path, programs)
        for line in commands(page):
            typist.type(line)

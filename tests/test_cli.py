"""The command line as a user meets it: help, one line for bad input, nothing written then."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from perpeft_ray import __version__
from perpeft_ray.cli import main, parse_study
from perpeft_ray.cli import run as run_command
from perpeft_ray.cli.main import COMMANDS, Command
from perpeft_ray.config import StudyConfig
from perpeft_ray.data import toyshop
from perpeft_ray.errors import InputError
from tests.records import record, written

__all__ = ["record"]

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "studies" / "ablation_peft.py"


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Ended]


def run(*arguments: str, cwd: Path):
    """A process as from a shell."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """A command in this process, which has imported what takes a process of its own seconds."""
    monkeypatch.chdir(tmp_path)

    def called(command: Callable[[], object], *arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["perpeft", *arguments])
        status = 0
        try:
            command()
        except SystemExit as ended:
            status = int(ended.code or 0)
        shown = capsys.readouterr()
        return Ended(status, shown.out, shown.err)

    return called


def script() -> None:
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.fixture
def folder(tmp_path):
    """A data set in the folder format: three users with four interactions, five items."""
    data = tmp_path / "data"
    data.mkdir()
    interactions = [(f"u{u}", f"i{(u + t) % 5}", t) for u in range(3) for t in range(4)]
    columns = ["user_id", "item_id", "timestamp"]
    pd.DataFrame(interactions, columns=columns).to_parquet(data / "interactions.parquet")
    items = pd.DataFrame({"item_id": [f"i{n}" for n in range(5)], "title": "a thing"})
    items.assign(image=None).astype({"image": "str"}).to_parquet(data / "items.parquet")
    return data


def test_help_names_every_field(call):
    shown = call(script, "--help")
    assert shown.returncode == 0
    for name in (
        "--preset {toyshop,full,paper}",
        "--search.max-concurrent INT",
        "--peft.variant {lora,ia3,iisan,rslora,dora,",
        "--grouping.groups INT|{search}",
        "--train.personal-epochs INT",
        "--seeds [INT [INT ...]]",
        "Weight of negatives from the group's own items",
        "Does personalised PEFT pay",
    ):
        assert name in shown.stdout


def test_every_dotted_name_sets_its_field():
    line = (
        "--dataset parquet:x --workers 2 --seeds 0 1 2 --search.trials 16 "
        "--search.max-concurrent 3 --search.no-asha --train.lr 3e-4 --train.epochs 5 "
        "--peft.variant lora --peft.rank 4 --grouping.groups 8 --loss.conditioning-weight 1.0 "
        "--methods global perpeft --search.learning_rates 1e-3 1e-2"
    )
    study = parse_study(line.split())
    assert (study.dataset, study.workers, study.seeds) == ("parquet:x", 2, (0, 1, 2))
    assert (study.search.trials, study.search.max_concurrent, study.search.asha) == (16, 3, False)
    assert (study.train.lr, study.train.epochs) == (3e-4, 5)
    assert (study.peft.variant, study.peft.rank, study.grouping.groups) == ("lora", 4, 8)
    assert study.loss.conditioning_weight == 1.0
    assert study.methods == ("global", "perpeft")
    assert study.search.learning_rates == (1e-3, 1e-2)


def test_presets_can_be_overridden():
    assert parse_study([]) == StudyConfig() == parse_study(["--preset", "toyshop"])
    assert parse_study(["--parallel-workers", "0"]) == StudyConfig()  # of earlier versions
    paper = parse_study(["--train.batch-size", "32", "--preset=paper", "--peft.rank", "search"])
    assert (paper.train.lr, paper.train.batch_size, paper.peft.rank) == (1e-4, 32, "search")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--peft.rnk 3", "unknown field `peft.rnk`; did you mean `peft.rank`?"),
        ("--sedes 1", "unknown field `sedes`; did you mean `seeds`?"),
        ("lora", "unexpected value 'lora': options are written as --field value"),
        ("--encoder", "`--encoder` must be followed by a value"),
        ("--peft.rank 0", "`peft.rank` must be a whole number of at least 1, but is 0"),
        ("--metrics.k 0", "`metrics.k` must be between 1 and 100, but is 0"),
        ("--seeds 0 -1", "`seeds` must be a whole number of at least 0, but is -1"),
        ("--search.groups 2 0", "`search.groups` must be a whole number of at least 1, but is 0"),
    ],
)
def test_bad_fields_are_reported_in_one_line(arguments, message):
    with pytest.raises(InputError) as error:
        parse_study(arguments.split())
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("arguments", "rule", "end"),
    [
        ("--methods perpft", "one of popularity, item_knn, ", "; did you mean `perpeft`?"),
        ("--search.variants ia", "one of lora, ia3, ", "; did you mean `ia3`?"),
        ("--preset p", "one of toyshop, full, paper", ""),
        ("--parallel-workers 2", "0", ""),
        ("--preset ---------", "one of toyshop, full, paper", ""),
        ("--search.trials x", "a whole number", ""),
        ("--peft.rank four", "a whole number or search", ""),
        ("--seeds 1.5", "whole numbers", ""),
        ("--search.learning-rates x", "numbers", ""),
        ("--search.learning-rate x", "None or two numbers", ""),
    ],
)
def test_bad_values_name_option_rule_and_value(arguments, rule, end):
    with pytest.raises(InputError) as error:
        parse_study(arguments.split())
    option, value = arguments.split()
    message = str(error.value)
    assert message.startswith(f"`{option}` must be {rule}")
    assert message.endswith(f", but is {value!r}{end}")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--dataset parquet:none", "none"),
        ("--grouping.groups 4", "must be between 1 and the number of users (3), but is 4"),
        ("--search.groups 2 --encoder /none", "`encoder` must be"),
        ("--search.groups 2 --search.trials 2 --search.variants lora ia3 iisan", "`search.trials`"),
    ],
)
def test_bad_input_exits_with_2_and_writes_nothing(folder, tmp_path, call, arguments, words):
    before = sorted(tmp_path.rglob("*"))
    ended = call(script, "--dataset", f"parquet:{folder}", *arguments.split())
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert words in ended.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_toyshop_leaves_nothing_either(tmp_path, call, monkeypatch):
    monkeypatch.setattr(toyshop, "USERS", 50)
    monkeypatch.setattr(toyshop, "ITEMS", 200)
    ended = call(script, "--grouping.groups", "51", "--storage", "new")
    assert ended.returncode == 2
    assert "must be between 1 and the number of users (50), but is 51" in ended.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("studdy", "'studdy'; did you mean `study`?"),
        ("tables", "perpeft tables STUDY"),
        ("report", "Missing from perpeft report: STUDY"),
        ("report x --all", "unknown field `all`"),
        ("explain", "must be followed by one of item, user"),
        ("recommend m --hist i1", "did you mean `history`?"),
        ("tables .", "study.json"),
        ("tables . --k x", "`--k` must be whole numbers, but is 'x'"),
        ("export . x --method foo", "`--method` must be one of popularity, item_knn, without_mm"),
        ("variants --rank 0", "`rank` must be a whole number of at least 1, but is 0"),
        ("study --peft.rnk 3", "unknown field `peft.rnk`"),
    ],
)
def test_a_bad_command_line_is_reported_in_one_line(call, arguments, words):
    ended = call(main, *arguments.split())
    assert ended.returncode == 2
    assert words in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("study --storage {at}/file/x", "{at}/file/x/.cache"),
        ("tables {at}/results/own", "{at}/results/own/tables"),
        ("report {at}/results/own", "{at}/results/own/figures"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path, call, monkeypatch, record, command, place
):
    monkeypatch.setattr(toyshop, "USERS", 50)
    monkeypatch.setattr(toyshop, "ITEMS", 200)
    study = written(StudyConfig(storage=f"{tmp_path}/results", study="own"), [record()])
    for name in ("file", *[study.path / part for part in ("tables", "figures")]):
        (tmp_path / name).touch()
    if "report" in command:
        (study.path / "tables").unlink()
    ended = call(main, *command.format(at=tmp_path).split())
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {place.format(at=tmp_path)} must be a place that")
    assert ended.stderr.count("\n") == 1


def test_a_reader_that_ends_early_is_no_error():
    code = "from perpeft_ray.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as help_to_nobody:
        assert help_to_nobody.stdout is not None
        help_to_nobody.stdout.close()
        assert help_to_nobody.stderr.read() == b""


def test_an_error_that_is_not_the_users_keeps_its_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_command(lambda: (tmp_path / "lost").read_bytes())


@pytest.mark.parametrize("command", ["tables", "report", "power"])
@pytest.mark.parametrize("damaged", ["study.json", "trials", "users"])
def test_a_damaged_study_is_one_line(tmp_path, call, record, command, damaged):
    study = written(StudyConfig(storage=str(tmp_path), study="own"), [record()])
    file = study.path / damaged
    file = next(file.iterdir()) if file.is_dir() else file
    file.write_bytes(file.read_bytes()[:-9])
    ended = call(main, command, str(study.path))
    assert ended.returncode == 2, ended.stderr
    assert str(file) in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_sigterm_ends_a_command_as_ctrl_c_does(call):
    ended = call(lambda: run_command(lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert ended.returncode == 143
    assert ended.stderr == "interrupted; rerun the same command to resume\n"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_study_from_another_folder(tmp_path):
    """The real thing: toyshop, one variant, few epochs; then the tables again."""
    line = (
        "--peft.variant iisan --search.trials 3 --search.grace-epochs 1 --train.lr 0.005 "
        "--train.epochs 1 --train.personal-epochs 3 --train.validate-every 1 "
        "--methods without_mm global perpeft"
    )
    ended = run(str(SCRIPT), *line.split(), cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "raylet" not in ended.stdout + ended.stderr  # Ray's warnings of many processes
    study = tmp_path / "results" / "ablation_peft"
    trials = pd.read_parquet(study / "trials")
    assert len(trials) == 3 + 3
    assert set(trials.status) <= {"COMPLETE", "PRUNED"}
    ablation = trials[trials.phase == "ablation"]
    assert ablation.test_ndcg_at_20.notna().all()
    assert trials[trials.phase == "search"].test_ndcg_at_20.isna().all()

    again = run(str(SCRIPT), *line.split(), cwd=tmp_path)
    assert again.returncode == 0
    assert "COMPLETE" not in again.stderr
    tables = run("-m", "perpeft_ray", "tables", "results/ablation_peft", cwd=tmp_path)
    assert tables.returncode == 0
    assert again.stdout.startswith(tables.stdout)  # without a word of progress


def test_the_papers_tables_with_its_wins(call):
    shown = call(main, "tables", "--paper")
    assert shown.returncode == 0
    for words in ("Table 2 on Sports & Outdoors", "44 of 48", "Table 3 on Arts", "15 of 16"):
        assert words in shown.stdout


def every_command(commands: Mapping[str, Command] = COMMANDS) -> Iterator[list[str]]:
    """The words of all commands, from `perpeft` alone on."""
    yield []
    for name, command in commands.items():
        within = [[]] if isinstance(command.options, str) else every_command(command.options)
        yield from ([name, *rest] for rest in within)


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_command_has_its_help(words, call):
    shown = call(main, *words, "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert " ".join(shown.stdout.split()).startswith(" ".join(["usage: perpeft", *words, "[-h]"]))
    assert "STR STR" not in shown.stdout


@pytest.mark.parametrize("words", [["study"], ["recommend"], ["explain", "item"]], ids=" ".join)
def test_lines_of_help_end_at_the_edge_or_with_a_sentence(words, call):
    """tyro keeps a docstring's line ends."""
    lines = re.findall(r"^\W {5,}(\S.*?) +\W$", call(main, *words, "--help").stdout, re.MULTILINE)
    wide = max(map(len, lines))
    for line, following in itertools.pairwise(lines):
        room = wide - len(line) > len(following.split()[0])
        own = line != "show this help message and exit"
        assert not (own and room) or line[-1] in ".)", f"{line}\n{following}"


def test_empty_defaults_are_not_shown(call):
    for words in (["tables"], ["recommend"]):
        assert not re.search(r"\(default: ?('')?\)", call(main, *words, "--help").stdout)


def test_usage_names_the_positional_arguments(call):
    for words, usage in (
        (["tables"], "usage: perpeft tables [-h] STUDY [--all] [--k [INT [INT ...]]] [--paper]"),
        (["export"], "usage: perpeft export [-h] [EXPORT OPTIONS] STUDY OUT"),
        (["explain", "item"], "usage: perpeft explain item [-h] [ITEM OPTIONS] STUDY ID"),
    ):
        assert usage in call(main, *words, "--help").stdout


def test_neither_help_nor_bad_data_waits_for_slow_imports():
    bad = [["study", *preset, "--dataset", "parquet:/none"] for preset in ([], ["--preset=full"])]
    bad.append(["recommend", "/none", "--history", "i1"])
    code = (
        "import contextlib, sys\n"
        "from perpeft_ray.cli import parse_study\n"
        "from perpeft_ray.cli.main import perpeft\n"
        "from perpeft_ray.errors import InputError\n"
        "parse_study([])\n"
        "assert 'pandas' not in sys.modules\n"
        f"for words in {[[*words, '--help'] for words in every_command()] + bad}:\n"
        "    with contextlib.suppress(SystemExit, InputError): perpeft(words)\n"
        "print('MODULES', *sys.modules)"
    )
    loaded = run("-c", code, cwd=ROOT).stdout.rpartition("MODULES")[2].split()
    assert {"perpeft_ray.cli.explain", "perpeft_ray.study.run"} <= set(loaded)
    assert {"torch", "ray", "optuna", "transformers", "peft"}.isdisjoint(loaded)


def test_study_and_its_script_have_the_same_options(call):
    def options(shown: Ended) -> list[str]:
        return re.findall(r"^\W ?(--.*?) *\W$", shown.stdout, flags=re.MULTILINE)

    names = options(call(main, "study", "--help"))
    assert "--preset {toyshop,full,paper}" in names
    assert names == options(call(script, "--help"))
    of_the_plan = {"--budget STR", "--dry-run"}
    assert set(names) - of_the_plan == set(options(call(main, "doctor", "--help")))


def as_module() -> None:
    runpy.run_module("perpeft_ray", run_name="__main__")


@pytest.mark.parametrize("command", [main, as_module])
def test_version_names_the_libraries(call, command):
    own, *libraries = call(command, "--version").stdout.splitlines()
    assert re.fullmatch(rf"perpeft {re.escape(__version__)}( \([0-9a-f]{{40}}(-dirty)?\))?", own)
    for name, line in zip(("torch", "ray", "transformers", "peft"), libraries, strict=True):
        assert line == f"{name} {metadata.version(name)}"

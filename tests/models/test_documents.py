"""The blocks of the README, of studies/README.md and of the tutorial, run with less training."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import perpeft_ray
from perpeft_ray.data.toyshop import ITEMS, USERS
from tests.data.prepare.test_amazon2023 import drawn, write_raw
from tests.data.prepare.test_release import write_release, zipped
from tests.small_shop import write_small_shop

ROOT = Path(__file__).parents[2]
README, TUTORIAL = ROOT / "README.md", ROOT / "studies" / "TUTORIAL.md"
STUDIES = ROOT / "studies" / "README.md"
EACH = pytest.mark.parametrize(
    "document", [README, TUTORIAL, STUDIES], ids=["readme", "tutorial", "studies"]
)

SHORTER = (
    "--train.epochs 1 --train.personal-epochs 1 --train.lr 3e-3 --search.trials 1 --seeds 0"
    " --peft.rank 4 --grouping.groups 3 --loss.conditioning-weight 0.5 --encoder toyshop-clip"
)
SHORTEST = f"{SHORTER} --methods global perpeft --peft.variant lora"
PROGRAMS = f"""set -eo pipefail
ours() {{ "$PYTHON" -c 'from perpeft_ray.cli import main; main()' "$@"; }}
perpeft() {{
    case "$1" in
        study) ours "$@" {SHORTER} ;;
        doctor) ours "$@" || test $? = 1 ;;
        *) ours "$@" ;;
    esac
}}
python() {{ if [ "$2" = --help ]; then "$PYTHON" "$@"; else "$PYTHON" "$@" {SHORTEST}; fi; }}
make() {{ test "$1" = study; eval "python studies/ablation_peft.py ${{2#ARGS=}}"; }}
tensorboard() {{ test -d "$2"; }}
optuna-dashboard() {{ test -f "$1"; }}
"""
"""What a block may call: ours, with less training (`doctor` may find this machine too small), and
viewers that are not installed for tests and would not end."""
NOT_RUN = {
    "--log mlflow wandb": "needs mlflow and wandb, which are not installed for tests",
    "--log wandb": "needs wandb, which is not installed for tests",
    "mlflow ui": "a server of mlflow's, which is not installed for tests",
}
"""Parts of lines that no test runs, and why."""
FIRST = re.compile(r"^(?:[A-Z_]+=\S+ )?([a-z-]+)")


def blocks(document: Path) -> list[tuple[str, str]]:
    """(language, code) in order."""
    pattern = r"^```(\w+)\n(.*?)^```$"
    return re.findall(pattern, document.read_text(), re.MULTILINE | re.DOTALL)


def run(language: str, code: str, folder: Path) -> str:
    """What a block prints, on both streams; the test fails with its errors where it does."""
    if language == "bash":
        lines = [line for line in code.splitlines() if not any(part in line for part in NOT_RUN)]
        command = ["bash", "-c", PROGRAMS + "\n".join(lines)]
    else:
        command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stderr + done.stdout


def test_every_link_between_documents_leads_somewhere():
    broken = [
        f"{document.relative_to(ROOT)}: {link}"
        for pattern in ("*.md", "*/*.md", "results/*/*.md")
        for document in ROOT.glob(pattern)
        for link in re.findall(r"\]\(([^)\s#:]+)[^)\s:]*\)", document.read_text())
        if not (document.parent / link).exists()
    ]
    assert broken == []


@EACH
def test_every_block_is_of_a_language_that_is_run(document):
    languages = [language for language, _ in blocks(document)]
    assert len(languages) >= 3
    # What README shows of a terminal, `make study` and `make test`, is what CI runs.
    assert set(languages) <= {"python", "bash", "console"}
    assert languages.count("console") == (1 if document == README else 0)
    # No block escapes the pattern: every fence is the start or the end of one.
    assert document.read_text().count("```") == 2 * len(languages)


@EACH
def test_every_line_calls_what_the_tests_can_run(document):
    known = set(re.findall(r"^([a-z-]+)\(\)", PROGRAMS, re.MULTILINE))
    for language, code in blocks(document):
        if language == "python":
            ast.parse(code)
        elif language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                first = FIRST.match(line)
                not_run = any(part in line for part in NOT_RUN)
                assert not_run or (first is not None and first[1] in known), line
    if document == STUDIES:
        assert all(part in document.read_text() for part in NOT_RUN)


@EACH
def test_every_id_is_of_the_toyshop(document):
    """README's are of seed 0 and the tutorial's of seed 7; the names do not depend on it."""
    code = "\n".join(code for _, code in blocks(document))
    ids = re.findall(r"\b(item|user)_?(\d+)\b", code)
    assert len(ids) >= 3 or document == STUDIES
    for kind, number in ids:
        assert f"{kind}{number}" in code, f"{kind}_{number}"
        assert len(number) == 4
        assert int(number) < {"item": ITEMS, "user": USERS}[kind]


def test_the_tutorial_takes_six_commands() -> None:
    """From the files of a shop to recommendations for one user and for all."""
    code = "\n".join(code for language, code in blocks(TUTORIAL) if language == "bash")
    commands = re.findall(r"^perpeft (\w+)", code, re.MULTILINE)
    assert len(commands) <= 6
    assert list(dict.fromkeys(commands)) == ["prepare", "study", "export", "recommend"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_runs(tmp_path):
    printed = [run(language, code, tmp_path) for language, code in blocks(TUTORIAL)]
    everything = "\n".join(printed)
    assert "separated by semicolons; user = customer (guessed)" in everything
    assert "times: day first" in everything
    assert (tmp_path / "my_results" / "my_shop" / "report.html").is_file()
    assert "exported to my_model" in everything
    assert "skipped" not in everything  # its ids are those of the shop
    assert "new_lamp" not in printed[-1].splitlines()[-1]  # it stands in the history
    model = perpeft_ray.load(tmp_path / "my_model")
    assert model.config.trial.method == "perpeft"
    assert model.config.has_encoder
    everyone = pd.read_parquet(tmp_path / "for_everyone")
    assert everyone.user_id.nunique() == model.config.users
    assert everyone.groupby("user_id").size().eq(10).all()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_readmes_run_after_make_study(tmp_path):
    """With the inputs that they name: the CSV files of a shop, DIR, release.zip, my_folder."""
    shutil.copytree(ROOT / "studies", tmp_path / "studies")
    write_raw(tmp_path / "DIR", *drawn())
    zipped(write_release(tmp_path / "release"), tmp_path / "release.zip")
    folder = write_small_shop(tmp_path / "my_folder")
    for table, name in (("interactions", "orders"), ("items", "products")):
        pd.read_parquet(folder / f"{table}.parquet").to_csv(tmp_path / f"{name}.csv", index=False)
    shutil.copytree(folder / "images", tmp_path / "photos" / "images")
    run("bash", "make study", tmp_path)
    printed = [run(*block, tmp_path) for block in blocks(README) if block[0] != "console"]
    assert "exported to my_model" in "\n".join(printed)
    assert "skipped" not in "\n".join(printed)
    study = tmp_path / "results" / "ablation_peft"
    assert {path.name for path in (study / "explain").iterdir()} == {
        "item-item0001.html",
        "user-user0001.html",
    }
    everyone = pd.read_parquet(tmp_path / "recommendations")
    assert everyone.user_id.nunique() == perpeft_ray.load(tmp_path / "my_model").config.users
    for block in blocks(STUDIES):
        run(*block, tmp_path)
    # The study's folder alone, elsewhere.
    study.rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "results")
    run("bash", "perpeft export elsewhere again", tmp_path)
    assert perpeft_ray.load(tmp_path / "again").item_ids[0] == "item0000"

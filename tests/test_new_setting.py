"""A new searched setting: one entry of the table, a field and two options, and it is everywhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import perpeft_ray

PACKAGE = Path(perpeft_ray.__file__).parent
INSERTED = {
    "searchable.py": (
        "SEARCHABLE: tuple[Searchable, ...] = (\n",
        '    Searchable("warmth", "train.warmth", "warmths", "θ", "warmth θ", positive),\n',
    ),
    "trial.py": ("    multimodal_weight: float\n", "    warmth: float\n"),
    "settings.py": (
        "class TrainSettings:\n",
        '    """Training."""\n    warmth: float | ToSearch = SEARCH\n    """How warm."""\n',
    ),
}
CHOICES = (
    "class SearchSettings:\n",
    '    """Search."""\n    warmths: tuple[float, ...] = (1.0, 2.0)\n    """Values."""\n',
)
SEEN = """
import contextlib, io
from dataclasses import replace
from datetime import UTC, datetime

import pandas as pd

from perpeft_ray.cli.study import parse_study
from perpeft_ray.errors import InputError
from perpeft_ray.{report}.page import TRIAL_HEADER, fixed_to, study_command
from perpeft_ray.{schema} import TRIALS
from perpeft_ray.{report}.tables import best_settings_table
from perpeft_ray.study.progress import Progress
from perpeft_ray.study.plan import TrialSpec, all_settings, first_setting


def error(*arguments):
    try:
        parse_study(arguments)
    except InputError as error:
        return str(error)


printed = io.StringIO()
with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
    parse_study(["--help"])
assert "--train.warmth" in printed.getvalue() and "--search.warmths" in printed.getvalue()

assert error("--train.warmth", "-1") == "`train.warmth` must be a positive number, but is -1.0"
assert error("--search.warmths", "1", "-2") == (
    "`search.warmths` must be a positive number, but is -2.0"
)
assert "`search.warmths` must not repeat a value" in error("--search.warmths", "1", "1")

study = parse_study([])
fixed = parse_study(["--train.warmth", "3"])
assert first_setting(study, "perpeft", "ia3")["warmth"] == 1.0
assert len(all_settings(study, "perpeft")) == 2 * len(all_settings(fixed, "perpeft"))
config = fixed.trial("perpeft", seed=0, variant="ia3")
assert config.warmth == 3.0
assert config.config_hash != study.trial("perpeft", seed=0, variant="ia3").config_hash

assert TRIALS.field("warmth").type == "double"
line = io.StringIO()
spec = TrialSpec("search", config)
Progress(line).finish(spec.record("study", "COMPLETE", [], datetime.now(UTC)))
assert " θ=3 " in line.getvalue()

rows = pd.DataFrame(
    [
        dict(vars(study.trial("perpeft", seed=0, variant="ia3", warmth=warmth)),
             phase="search", status="COMPLETE", valid_ndcg_at_20=warmth / 10)
        for warmth in (1.0, 2.0)
    ]
)
table = best_settings_table(rows).printed[0]
assert table.texts["warmth θ"][0] == "2"
assert "--train.warmth 2.0" in study_command(fixed_to(study, rows.iloc[1]))
assert "warmth θ" in TRIAL_HEADER
"""


def test_a_new_setting_arrives_everywhere(tmp_path: Path) -> None:
    package = tmp_path / "perpeft_ray"
    shutil.copytree(PACKAGE / "config", package / "config")
    for path in PACKAGE.iterdir():
        if path.name != "config":
            (package / path.name).symlink_to(path)
    for name, (before, inserted) in [*INSERTED.items(), ("settings.py", CHOICES)]:
        file = package / "config" / name
        text = file.read_text(encoding="utf-8")
        assert before in text
        file.write_text(text.replace(before, before + inserted), encoding="utf-8")
    script = SEEN.format(report="report", schema="store.schema")
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,  # the first place of the path
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr

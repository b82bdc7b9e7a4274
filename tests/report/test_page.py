"""The report as a reader opens it."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from perpeft_ray.cli import parse_study
from perpeft_ray.config import SearchSettings, StudyConfig, TrainSettings
from perpeft_ray.data.split import RepeatShares
from perpeft_ray.report.page import fixed_to, study_command, write_report
from perpeft_ray.report.summary import best_settings
from perpeft_ray.report.tables import StudyResults
from perpeft_ray.store.description import repeat_warnings
from perpeft_ray.store.folder import StudyFolder
from tests.records import frames_of, with_ranks, written

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return StudyConfig(storage=str(tmp_path_factory.mktemp("report")), seeds=(0, 1))


@pytest.fixture(scope="module")
def page(study: StudyConfig, record) -> Path:
    """The report of a study that is half done."""
    failed = record("perpeft", "ia3", status="FAIL", trial_id="bad")
    records = [
        record("perpeft", "lora", 0.09, phase="search", rank=8, learning_rate=5e-3),
        record("perpeft", "ia3", 0.07, phase="search"),
        record("perpeft", "iisan", 0.06, phase="search", status="PRUNED"),
        record("perpeft", "lora", 0.10, seed=0, rank=8, learning_rate=5e-3),
        record("perpeft", "lora", 0.12, seed=1, rank=8, learning_rate=5e-3),
        record("global", "lora", 0.08, seed=0),
        record("global", "lora", 0.08, seed=1),
        replace(failed, error="ValueError: <script>alert(1)</script>"),
    ]
    return write_report(StudyResults.read(written(study, records)))[0]


def words(command: str) -> list[str]:
    """As a shell splits a command; Python's splitter does not know lines that go on."""
    return shlex.split(command.replace("\\\n", ""))


def test_the_table_and_verdict_come_first(page: Path) -> None:
    text = html.unescape(page.read_text())
    first = text[: text.index("<nav")]
    assert "Test NDCG@20 × 100 on toyshop" in first
    assert "over global" in first
    assert "perpeft export" in first
    assert first.index("<table") < first.index("over global")


def test_the_best_setting_has_a_command_for_it_alone(page: Path, study: StudyConfig) -> None:
    text = page.read_text()
    best = html.unescape(text[text.index('id="best"') : text.index('class="warnings"')])
    assert "lora, 6 groups, rank 8, λ = 0.5, learning rate 0.005 (validation NDCG@20 9.00)" in best
    command = words(re.search(r"<code>(.*?)</code>", best, re.DOTALL)[1])
    assert command[:2] == ["perpeft", "study"]
    given = parse_study(command[2:])
    assert (given.peft.variant, given.peft.rank, given.grouping.groups) == ("lora", 8, 6)
    assert (given.loss.conditioning_weight, given.train.lr) == (0.5, 0.005)
    assert given.study == "ablation_peft_best"
    assert given.seeds == study.seeds


def test_the_contents_link_to_existing_sections(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r'href="#([^"]*)"', text)
    assert {"verdict", "best", "effects", "learning_curves", "tables", "trials"} <= set(links)
    assert all(f'id="{link}"' in text for link in links)


def test_every_trial_has_links_to_its_files(page: Path) -> None:
    links = re.findall(r'href="((?:trials|epochs|users)/[^"]*)"', page.read_text())
    assert len(links) == 3 * 6 + 2 * 2  # a pruned and a failed trial have no users
    assert all((page.parent / link).is_file() for link in links)


def test_warnings_are_shown_and_escaped(page: Path) -> None:
    text = page.read_text()
    assert "4 of 30 compared trials are complete, 1 failed" in text
    assert "Failed: bad: ValueError: &lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("<script") == 1  # the page's own
    assert "1 trials of the search were stopped early" in text


def test_the_page_needs_nothing_beside_it(page: Path) -> None:
    sources = re.findall(r'(?:src|href)="([^"]*)"', page.read_text())
    assert len(sources) > 3
    own = ("data:", "#", "trials/", "epochs/", "users/")
    assert all(source.startswith(own) for source in sources)


def test_a_study_without_trials_has_a_page(tmp_path: Path) -> None:
    folder = written(StudyConfig(storage=str(tmp_path)), [])
    page, _ = write_report(StudyResults.read(folder))
    text = page.read_text()
    assert "No trial of the search is complete yet." in text
    assert "No finished trial to draw yet." in text
    assert "<td>perpeft</td><td>–</td>" in text


def test_commands_reproduce_the_study(record) -> None:
    study = StudyConfig(
        dataset="parquet:a folder",
        methods=("global", "perpeft"),
        workers=2,
        train=TrainSettings(mode="parallel", epochs=3),
        search=SearchSettings(asha=False, ranks=(4, 8), conditioning_weights=(0.5, 1.0)),
    )
    command = words(study_command(study))
    assert parse_study(command[2:]) == study
    trials, _ = frames_of([record("perpeft", "ia3", 0.1, phase="search")])
    fixed = fixed_to(study, best_settings(trials).iloc[0])
    assert fixed.peft.rank == "search"  # (IA)³ has none
    assert parse_study(words(study_command(fixed))[2:]) == fixed


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (apt-get install chromium)")
def test_a_browser_shows_the_page_on_a_narrow_screen(page: Path, tmp_path: Path) -> None:
    outer, srcdoc = tmp_path / "outer.html", html.escape(page.read_text())
    # 400 px wide by a frame, for a window has a least width; srcdoc, so that it can be looked into.
    outer.write_text(
        f"""<iframe style="width:400px;height:800px;border:0" srcdoc="{srcdoc}"></iframe>
        <script>
        const sorted = (inner) => {{
            const table = inner.querySelector("table.sortable");
            const at = [...table.tHead.rows[0].cells].findIndex(
                (head) => head.textContent === "valid NDCG@20");
            table.tHead.rows[0].cells[at].querySelector("button").click();
            return [...table.tBodies[0].rows].map((row) => row.cells[at].textContent);
        }};
        document.querySelector("iframe").onload = (event) => {{
            const inner = event.target.contentDocument;
            document.title = JSON.stringify({{
                width: inner.documentElement.scrollWidth,
                images: [...inner.images].map((image) => image.naturalWidth),
                widest: Math.max(...[...inner.images].map((image) => image.clientWidth)),
                best: inner.querySelector(".best table").getBoundingClientRect().bottom,
                order: sorted(inner),
            }});
        }}</script>"""
    )
    shown = subprocess.run(
        [
            *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000"),
            *(f"--user-data-dir={tmp_path / 'profile'}", outer.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in shown.stderr
    seen = json.loads(html.unescape(re.search("<title>(.*?)</title>", shown.stdout)[1]))
    assert seen["width"] <= 400
    assert len(seen["images"]) >= 3
    assert min(seen["images"]) > 600
    assert 300 < seen["widest"] <= 400
    assert seen["best"] < 800  # the first screen has the answer
    assert seen["order"] == ["7.00", "8.00", "8.00", "9.00", "10.00", "12.00", "", ""]


def test_groups_without_users_and_repeats_are_on_the_page(tmp_path: Path, record) -> None:
    study = StudyConfig(storage=str(tmp_path))
    folder = StudyFolder.create(study, None, RepeatShares(0.25, 0.5))
    own = record("perpeft", "lora")
    folder.write_trial(own)
    folder.write_trial(record("global", "lora"))
    page, _ = write_report(StudyResults.read(folder))
    text = html.unescape(page.read_text())
    for warning in (
        f"Groups without users in 1 compared trial, such as {own.trial_id} "
        "(4 of 6 groups): too many users are alike; ask for fewer groups.",
        "25.0% of the test targets are already in the user's history",
        "50.0% of the interactions are repeated rows",
    ):
        assert warning in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("ranks", [[0], [0, 40], [0, 40, 3]])
def test_few_users_give_neither_warnings_nor_infinite_numbers(
    tmp_path: Path, record, ranks: list[int]
) -> None:
    none = [40] * len(ranks)
    records = [
        with_ranks(record(method, variant, seed=seed), ranks if method == "perpeft" else none)
        for method, variant in (("perpeft", "lora"), ("global", "lora"), ("frozen_mm", None))
        for seed in (0, 1)
    ]
    study = StudyConfig(storage=str(tmp_path), seeds=(0, 1))
    page, tables = write_report(StudyResults.read(written(study, records)))
    printed = " ".join(text.markdown() for table in tables.values() for text in table.printed)
    assert not re.search(r"\b(nan|inf)\b", printed + html.unescape(page.read_text()))


def test_data_without_repeats_have_no_warning() -> None:
    assert repeat_warnings({"targets_in_history": 0.0, "repeated_rows": 0.0}) == []

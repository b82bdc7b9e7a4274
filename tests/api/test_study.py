"""studies/PYTHON.md, run; and what the package imports."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import perpeft_ray
from perpeft_ray.config import StudyConfig, TrainSettings
from perpeft_ray.errors import InputError
from perpeft_ray.store.folder import StudyFolder
from tests.small_shop import write_small_shop

DOCUMENT = Path(__file__).parents[2] / "studies" / "PYTHON.md"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder.create(StudyConfig(storage=str(tmp_path / "results"), study="first"))


def test_importing_the_package_is_quick() -> None:
    code = "import sys, perpeft_ray; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {"numpy", "pandas", "torch", "ray", "tyro"}.isdisjoint(loaded)


@pytest.mark.parametrize("at_uri", [False, True])
def test_an_open_study_reads_what_is_there_now(
    at_uri: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    storage = (tmp_path / "results").as_uri() if at_uri else str(tmp_path / "results")
    folder = StudyFolder.create(StudyConfig(storage=storage, study="first"))
    study = perpeft_ray.open_study(folder.uri or folder.path)
    assert study.trials().empty
    folder.write_trial(record("perpeft", "lora", 0.3, minute=1))
    folder.write_trial(record("perpeft", "ia3", 0.2))
    folder.write_trial(record("global", "lora", 0.1))
    results = study.results()
    assert (len(results.trials), len(results.users)) == (3, 9)
    assert len(study.trials()) == len(study.epochs()) / 2 == len(study.users()) / 3 == 3
    assert study.best().variant == "lora"
    assert study.best("global").method == "global"
    with pytest.raises(InputError, match="COMPLETE trial of `method` item_knn"):
        study.best("item_knn")


def test_tables_are_those_of_the_files(folder: StudyFolder, record) -> None:
    folder.write_trial(record("perpeft", "lora", 0.3))
    study = perpeft_ray.open_study(folder.path)
    page = study.report()
    assert page.is_file()
    for name, numbers in study.tables().items():
        written = pd.read_parquet(folder.path / "tables" / f"{name}.parquet")
        pd.testing.assert_frame_equal(written, numbers, check_dtype=False)


def test_a_notebook_shows_table_and_verdict(folder: StudyFolder, record) -> None:
    folder.write_trial(record("perpeft", "lora", 0.3))
    shown = perpeft_ray.open_study(folder.path)._repr_markdown_()
    assert shown.startswith("### Test NDCG@20 × 100 on toyshop")
    assert "| perpeft " in shown
    assert "- LoRA: not compared" in shown


def test_no_study_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must have study\.json"):
        perpeft_ray.open_study(tmp_path)
    with pytest.raises(InputError, match="must be a path or a URI, but is None"):
        perpeft_ray.open_study(None)


@pytest.mark.parametrize(
    ("k", "words"),
    [(10, "must be a list of values, but is 10"), ((0,), "must be between 1 and 100, but is 0")],
)
def test_a_bad_k_is_refused_when_a_study_is_opened(folder: StudyFolder, k: Any, words: str) -> None:
    with pytest.raises(InputError, match=rf"`metrics\.k` {words}"):
        perpeft_ray.open_study(folder.path, k)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_ray: None) -> None:
    """With less training, and from the second on without any."""
    monkeypatch.chdir(tmp_path)
    write_small_shop(tmp_path / "my_shop")
    names: dict[str, object] = {}
    short = TrainSettings(epochs=1, personal_epochs=1, validate_every=1)
    for code in examples():
        code = code.replace('dataset="toyshop"', f'dataset="parquet:my_shop", train={short!r}')
        code = code.replace("path/to/clip", "toyshop-clip")
        exec(code, {**names, "TrainSettings": TrainSettings}, names)
    assert (tmp_path / "my_model").is_dir()

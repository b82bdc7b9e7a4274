"""`perpeft doctor` on data that a study would prepare: it is read from, and not prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perpeft_ray.cli.main import perpeft
from perpeft_ray.errors import InputError
from perpeft_ray.study.doctor import diagnosis, examine
from tests.data.prepare.test_release import write_release


def test_raw_data_is_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def diagnose(study: Any, storage: Path, data: Any) -> list[diagnosis.Check]:
        asked.append(data)
        return [diagnosis.check_raw_files(study.dataset, [file.stat().st_size for file in data])]

    monkeypatch.setattr(examine, "diagnose", diagnose)
    release, storage = write_release(tmp_path / "arts"), tmp_path / "results"
    options = [
        "--storage",
        str(storage),
        "--dataset",
        f"release:{release}",
        "--encoder",
        "toyshop-clip",
    ]
    before = sorted(tmp_path.rglob("*"))
    perpeft(["doctor", *options])
    assert [[file.name for file in files] for files in asked] == [
        ["arts_final.txt", "arts_item2id_final.pickle", "arts_texts_final.pickle"]
    ]
    assert "3 raw files, 0.0 MB, can be read here" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="number of variants"):
        perpeft(["doctor", *options, "--search.trials", "2"])

"""A study from Python: run it, open it, read its results, export a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from perpeft_ray.config import MetricsSettings, StudyConfig
from perpeft_ray.report.page import write_report
from perpeft_ray.report.tables import (
    StudyResults,
    answer_lines,
    answer_tables,
    printed_tables,
    study_tables,
)
from perpeft_ray.report.verdict import Verdict
from perpeft_ray.store.folder import StudyFolder

if TYPE_CHECKING:
    from perpeft_ray.models.layout import Precision


@dataclass(frozen=True)
class OpenedStudy:
    """A study's folder. Every call reads its present content, also while the study runs.

    As the last value of a notebook cell it shows the table and the verdict.
    """

    folder: StudyFolder
    k: tuple[int, ...] = ()
    """Lengths of recommended lists in the table of metrics; empty: the study's `metrics.k`."""

    @property
    def config(self) -> StudyConfig:
        """The study's configuration."""
        return self.folder.config

    def trials(self) -> pd.DataFrame:
        """One row per trial; results/README.md has the columns."""
        return self.folder.trials()

    def epochs(self) -> pd.DataFrame:
        """One row per epoch of a trial."""
        return self.folder.epochs()

    def users(self) -> pd.DataFrame:
        """One row per user of a COMPLETE trial: group, ranks, length of the history."""
        return self.folder.users()

    def tables(self) -> dict[str, pd.DataFrame]:
        """The numbers of every table by name, as in `tables/<name>.parquet`."""
        return {name: table.numbers for name, table in study_tables(self.results()).items()}

    def verdict(self) -> Verdict:
        """Whether PerPEFT pays here, how sure that is, and what to use."""
        return self.results().verdict

    def best(self, method: str = "perpeft") -> pd.Series:
        """The row of the trial that `export` takes: the method's best by validation NDCG@20.

        Raises InputError if the method has no COMPLETE trial in the ablation.
        """
        from perpeft_ray.models.trained import BEST, choose_trial

        trials = self.trials()
        return trials[trials.trial_id == choose_trial(self.folder, BEST, method)].iloc[0]

    def export(
        self,
        out: Path | str,
        *,
        trial: str = "best",
        method: str = "perpeft",
        embeddings: Precision = "float32",
        with_encoder: bool = False,
    ) -> str:
        """Write a trial to the new folder `out`, for `perpeft_ray.load`; returns the trial's id.

        `trial`: an id, or best of `method`. The rest as in `export_trial`. Raises InputError if
        `out` exists, or if there is no such trial or its weights are gone.
        """
        from perpeft_ray.models.export import export_trial
        from perpeft_ray.models.trained import choose_trial

        trial_id = choose_trial(self.folder, trial, method)
        export_trial(
            self.folder, trial_id, Path(out), embeddings=embeddings, with_encoder=with_encoder
        )
        return trial_id

    def report(self) -> Path:
        """Write tables, figures and `report.html`; returns the page's path."""
        page, _ = write_report(self.results())
        self.folder.keep("tables", "figures", "report.html")
        return page

    def results(self) -> StudyResults:
        """The study's results so far, read once, for several tables of the same state."""
        results = StudyResults.read(self.folder)
        if not self.k:
            return results
        return replace(results, study=replace(results.study, metrics=MetricsSettings(self.k)))

    def _repr_markdown_(self) -> str:
        """The table and the verdict, as a notebook shows them."""
        results = self.results()
        texts = [table.markdown() for table in printed_tables(answer_tables(results))]
        lines = answer_lines(results, self.folder.uri or str(self.folder.path))
        return "\n".join([*texts, "", *(f"- {line}" for line in lines)])


def run_study(config: StudyConfig) -> OpenedStudy:
    """Run or resume an ablation study, and write its tables, figures and report.

    Raises InputError before anything is written, and StudyStoppedError if a disk is full or Ray has
    no room.
    """
    from perpeft_ray.study.run import run_study

    study = open_study(run_study(config), config.metrics.k)
    study.report()
    return study


def open_study(place: Path | str, k: tuple[int, ...] = ()) -> OpenedStudy:
    """The study in a folder or at a URI, `<storage>/<study>`. Raises InputError if there is none.

    `k` as in `OpenedStudy`.
    """
    return OpenedStudy(StudyFolder.open(place), k and MetricsSettings(k).k)

"""`perpeft study`, and the scripts of `studies/`: from a command line to a finished study."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import pkgutil
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self, get_args

import tyro

from perpeft_ray.cli.parsing import parse, run
from perpeft_ray.cli.results import show_results
from perpeft_ray.config import StudyConfig
from perpeft_ray.errors import InputError
from perpeft_ray.study.host.job import check_storage_outlives_job
from perpeft_ray.study.presets import Preset, preset

if TYPE_CHECKING:
    from perpeft_ray.data.interactions import Dataset
    from perpeft_ray.results.folder import StudyFolder
    from perpeft_ray.study.progress import Progress
    from perpeft_ray.study.trainable import Study


@dataclass(frozen=True)
class Question:
    """What a script of `studies/` asks."""

    scientific: tuple[str, ...] = ("method", "variant", "mode")
    """Fields of `TrialConfig` whose effect the study is about. Of the others, those that the search
    chooses, and the seed, are nuisance; the rest is fixed."""
    defaults: Callable[[StudyConfig], StudyConfig] = lambda preset: preset
    """From a preset to the script's own defaults."""
    run: str = "perpeft_ray.study.ablation:run_ablation"
    """The function (Study, Progress) that runs what is missing of the study, as module:function;
    imported late, so that `--help` and bad input answer at once."""


@dataclass(frozen=True)
class StudyCommand:
    """`perpeft study`, and the options of every command line that describes a study."""

    config: Annotated[StudyConfig, tyro.conf.arg(name="")]
    preset: Preset = "toyshop"
    """Defaults: sized for toyshop on two cores, toyshop in full, or the paper's constants."""

    @classmethod
    def defaults(cls, arguments: Sequence[str], question: Question | None = None) -> Self:
        """What holds where a command line says nothing else: its preset, as a script changes it."""
        chosen = _preset_of(arguments)
        return cls((question or Question()).defaults(preset(chosen)), chosen)

    def run(self) -> None:
        """Run the study."""
        run_study(self.config)


def ask(question: Question, description: str | None) -> None:
    """What a script of `studies/` does: read the command line, run, print and report."""
    arguments = sys.argv[1:]
    run(lambda: run_study(parse_study(arguments, description, question), question))


def parse_study(
    arguments: Sequence[str], description: str | None = None, question: Question | None = None
) -> StudyConfig:
    """The study that a script's command line describes: a preset, and what is given instead.

    Every field has its dotted name (`--search.max-concurrent 2`). Prints help and exits for
    `--help`. Raises InputError, in one line, for unknown fields and bad values.
    """
    default = StudyCommand.defaults(arguments, question)
    return parse(StudyCommand, arguments, description=description, default=default).config


def run_study(config: StudyConfig, question: Question | None = None) -> None:
    """Run a study, or what is missing of it, print its tables and write its report.

    Raises InputError before anything is written.
    """
    from perpeft_ray.data.places import reached
    from perpeft_ray.data.split import repeat_shares
    from perpeft_ray.results.description import repeat_warnings
    from perpeft_ray.results.folder import DESCRIPTION, StudyFolder, storage_folder, study_place
    from perpeft_ray.study.host.disk import telling_a_full_disk
    from perpeft_ray.study.host.owner import owned
    from perpeft_ray.study.host.remote_owner import owned_at
    from perpeft_ray.study.host.runtime import ray_for
    from perpeft_ray.study.progress import Progress
    from perpeft_ray.study.trackers import check_trackers
    from perpeft_ray.train.fingerprints import fingerprints

    question = question or Question()
    check_storage_outlives_job(config.storage)
    config = _anywhere(config)
    storage = storage_folder(config.storage)
    log_file = storage / config.study / "study.log"
    kept = study_place(config.storage, config.study)
    with (
        telling_a_full_disk(log_file.parent),
        Progress() as progress,
        contextlib.ExitStack() as stack,
    ):
        with _leaving_nothing_behind(storage, log_file.parent):
            cache = storage / ".cache"
            begun = (log_file.parent / DESCRIPTION).exists()
            dataset = check_inputs(config, cache, again=not begun)
            check_trackers(config)
            stack.enter_context(owned(log_file.parent, progress.say))
            if isinstance(kept, str):
                with reached(kept):
                    stack.enter_context(owned_at(kept, progress.say))
            now = fingerprints(dataset, config.encoder)
            repeats = repeat_shares(dataset)
            folder = StudyFolder.create(config, now, repeats, scientific=question.scientific)
            progress.say(f"study {config.study}: {config.dataset} with {config.encoder}")
            for warning in repeat_warnings(dataclasses.asdict(repeats)):
                progress.say(f"warning: {warning}")
            stack.callback(folder.keep)
            config = stack.enter_context(ray_for(config, log_file))
            study = _open_study(config, folder, dataset, cache, progress)
            if not folder.uri:
                stack.callback(_keep_weights, folder, study)
        progress.say(
            f"{study.workspace.num_users} users, {study.workspace.num_items} items; "
            f"results in {kept}"
        )
        pkgutil.resolve_name(question.run)(study, progress)
    show_results(kept)


def check_inputs(config: StudyConfig, cache: Path, *, again: bool = True) -> Dataset:
    """Open the dataset and the encoder's preprocessing. Raises InputError for unusable ones.

    `again`: as in `open_dataset`; a study that has begun keeps the data that it began with.
    Also where a variant does not fit the encoder: its trials would all fail.
    """
    from perpeft_ray.data.sources import open_dataset
    from perpeft_ray.data.split import leave_one_out
    from perpeft_ray.study.check import check_histories

    dataset = open_dataset(config.dataset, cache, again=again)
    split = leave_one_out(dataset)
    check_settings(config, split.num_users)
    check_histories(split, config.dataset)
    return dataset


def check_settings(config: StudyConfig, num_users: int | None) -> None:
    """What `check_inputs` does besides opening the dataset; `num_users` None: not known yet."""
    import torch

    from perpeft_ray.encoder.foundation import load_towers
    from perpeft_ray.encoder.preprocess import FoundationPreprocessor
    from perpeft_ray.encoder.sizes import ModuleSettings, module_parameters
    from perpeft_ray.study.check import check_study

    has_images = FoundationPreprocessor(config.encoder).image_size > 0
    check_study(config, num_users, has_images=has_images)
    for variant, rank in itertools.product(config.values("variant"), config.values("rank")):
        settings = ModuleSettings(rank, config.peft.bottleneck, config.peft.last_layers)
        module_parameters(config.encoder, variant, settings)
    load_towers(config.encoder, "bfloat16", torch.device("cpu"))  # its weights fit its model


def _anywhere(config: StudyConfig) -> StudyConfig:
    """The study with absolute paths: it means the same in any folder."""
    from perpeft_ray.data.places import is_uri
    from perpeft_ray.data.sources import absolute_dataset
    from perpeft_ray.encoder.source import absolute_encoder

    def absolute(place: str) -> str:
        return place if is_uri(place) else str(Path(place).expanduser().absolute())

    return dataclasses.replace(
        config,
        dataset=absolute_dataset(config.dataset),
        encoder=absolute_encoder(config.encoder),
        storage=absolute(config.storage),
        checkpoints=config.checkpoints and absolute(config.checkpoints),
    )


def _preset_of(arguments: Sequence[str]) -> Preset:
    """The preset on a command line; whether it is one is for the full parser to say."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--preset", nargs="?", default="toyshop")
    given = parser.parse_known_args(arguments)[0].preset
    return given if given in get_args(Preset) else "toyshop"


def _open_study(
    config: StudyConfig, folder: StudyFolder, dataset: Dataset, cache: Path, progress: Progress
) -> Study:
    from perpeft_ray.study.ray_items import telling
    from perpeft_ray.study.trainable import Study
    from perpeft_ray.train.trial import run_trial
    from perpeft_ray.train.workspace import prepare_dataset

    workspace = prepare_dataset(
        dataset, config.encoder, cache, telling(progress.prepared), kept=folder.kept
    )
    return Study(
        config=config,
        folder=folder.path,
        workspace=workspace,
        recorder=folder,
        run=run_trial,
    )


def _keep_weights(folder: StudyFolder, study: Study) -> None:
    from perpeft_ray.models.pack import keep_weights

    keep_weights(folder, study.workspace)


@contextlib.contextmanager
def _leaving_nothing_behind(storage: Path, folder: Path) -> Iterator[None]:
    """Where the input turns out to be bad, remove what did not exist before: storage or study.

    Unless it is by now another process's, which was started at the same time.
    """
    from perpeft_ray.study.host.owner import others_own

    new = [path for path in (storage, folder) if not path.exists()][:1]
    try:
        yield
    except InputError:
        for path in new:
            if not others_own(path):
                shutil.rmtree(path, ignore_errors=True)
        raise

"""What a trial and a study are: frozen, validated, hashed.

`TrialConfig` is flat and its fields are columns of the result table. `StudyConfig` is nested and
its dotted names are the command line's. A searched setting of a study holds the word ``search``
until a trial gives it a value; in a trial ``None`` means one thing only: the setting does not
apply to this method or variant.
"""

from perpeft_ray.config.methods import (
    GROUPED_METHODS,
    METHODS,
    PEFT_METHODS,
    PERSONAL_METHODS,
    SIMPLE_METHODS,
    TABLE_2,
    TABLE_3,
    VECTOR_METHODS,
    Method,
    exists,
)
from perpeft_ray.config.searchable import SEARCHABLE, VARIED, Searchable
from perpeft_ray.config.settings import (
    LONGEST_LIST,
    SEARCH,
    DataSettings,
    Dtype,
    GroupingSettings,
    LossSettings,
    MetricsSettings,
    Mode,
    ModelSettings,
    PeftSettings,
    SearchSettings,
    SplitKind,
    TrainSettings,
)
from perpeft_ray.config.study import AUTO, StudyConfig
from perpeft_ray.config.trial import TrialConfig, canonical_hash
from perpeft_ray.config.variants import FACTS, PAPER_VARIANTS, VARIANTS, Variant, VariantFacts

__all__ = [
    "AUTO",
    "FACTS",
    "GROUPED_METHODS",
    "LONGEST_LIST",
    "METHODS",
    "PAPER_VARIANTS",
    "PEFT_METHODS",
    "PERSONAL_METHODS",
    "SEARCH",
    "SEARCHABLE",
    "SIMPLE_METHODS",
    "TABLE_2",
    "TABLE_3",
    "VARIANTS",
    "VARIED",
    "VECTOR_METHODS",
    "DataSettings",
    "Dtype",
    "GroupingSettings",
    "LossSettings",
    "Method",
    "MetricsSettings",
    "Mode",
    "ModelSettings",
    "PeftSettings",
    "SearchSettings",
    "Searchable",
    "SplitKind",
    "StudyConfig",
    "TrainSettings",
    "TrialConfig",
    "Variant",
    "VariantFacts",
    "canonical_hash",
    "exists",
]

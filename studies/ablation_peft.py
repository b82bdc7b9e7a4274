"""Does personalised PEFT pay, with which variant, and what does each of its parts add?

Small (the embedded catalogue on two cores):

    python studies/ablation_peft.py

Full (the embedded catalogue with all rows of Table 2 and five seeds; own data and encoder with the
paper's constants):

    python studies/ablation_peft.py --preset full
    python studies/ablation_peft.py --preset paper --dataset parquet:PATH --encoder PATH
        --seeds 0 1 2 3 4 --workers 4 --storage /absolute/path

Searches PerPEFT's settings, takes the best of each variant by validation, and compares the methods
with it over seeds. Scientific: method, variant, mode. Nuisance: the settings that the search
chooses, the learning rate, which every baseline chooses among the same values, and the seed. Fixed:
the rest. Interrupted, the same command does what is missing.
"""

from __future__ import annotations

from perpeft_ray.cli import Question, ask

if __name__ == "__main__":
    ask(Question(), __doc__)

"""Does personalised PEFT pay, with which variant, and what does each of its parts add?

Small (the embedded catalogue on two cores):

    python studies/ablation_peft.py

Full (the embedded catalogue with all rows of Table 2 and five seeds; own data and encoder with the
paper's constants):

    python studies/ablation_peft.py --preset full
    python studies/ablation_peft.py --preset paper --dataset parquet:PATH --encoder PATH
        --seeds 0 1 2 3 4 --workers 4 --storage /absolute/path

Searches the settings of PerPEFT and of every baseline, takes the best of each variant by
validation, and compares the methods over seeds. Scientific: method, variant. Nuisance: the searched
settings and the seed. Fixed: the rest. Rerun the same command to resume.
"""

from __future__ import annotations

from perpeft_ray.cli import Question, ask

if __name__ == "__main__":
    ask(Question(), __doc__)

"""Does personalised PEFT pay, with which variant, and what does each of its parts add?

Small (the embedded catalogue on two cores):

    python studies/ablation_peft.py

Full (own data and encoder, five seeds, the paper's constants):

    python studies/ablation_peft.py --preset paper --dataset parquet:PATH --encoder PATH
        --seeds 0 1 2 3 4 --workers 4 --storage /absolute/path

Searches PerPEFT's settings, takes the best of each variant by validation, and compares the methods
with it over seeds. Interrupted, the same command does what is missing.
"""

from __future__ import annotations

import sys

from perpeft_ray.cli import parse_study, run, run_study


def main() -> None:
    """Parse the command line and run the study."""
    run_study(parse_study(sys.argv[1:], description=__doc__))


if __name__ == "__main__":
    run(main)

"""The command line: what each subcommand of `perpeft` does, and what the scripts of studies share.

Heavy libraries are imported where they are used, so that `--help` and bad input answer at once.
"""

from perpeft_ray.cli.main import main
from perpeft_ray.cli.parsing import parse, run
from perpeft_ray.cli.study import Question, ask, parse_study, run_and_show

__all__ = ["Question", "ask", "main", "parse", "parse_study", "run", "run_and_show"]

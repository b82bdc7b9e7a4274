"""The command line: the subcommands of `perpeft`, and what the scripts in studies/ share.

Heavy libraries are imported where they are used, so that `--help` and errors appear at once.
"""

from perpeft_ray.cli.main import main
from perpeft_ray.cli.parsing import parse, run
from perpeft_ray.cli.study import Question, ask, parse_study, run_and_show

__all__ = ["Question", "ask", "main", "parse", "parse_study", "run", "run_and_show"]

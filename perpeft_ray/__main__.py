"""`python -m perpeft_ray` is the command `perpeft`."""

from perpeft_ray.cli.main import main

main()

"""The Python API, for notebooks and the command line: run, open and plan a study."""

"""What a notebook calls, and the command line: run a study, open one, plan one."""

"""What lies on disk: the rows of trials and their schema, a study's folder, and who runs it."""

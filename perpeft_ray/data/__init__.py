"""From a dataset's URI to arrays: interactions, the split, the catalogue store."""

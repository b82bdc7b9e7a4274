"""From a dataset's URI to arrays: interactions, the leave-one-out split, the catalogue store."""

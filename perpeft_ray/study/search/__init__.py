"""The search: space, suggestions, early stopping, and resuming."""

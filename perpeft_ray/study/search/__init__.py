"""The search: its space, suggestions, early stopping, and how it goes on after a stop."""

"""Tables, statistics, figures and the page of a study; it only reads the store.

It imports Optuna only for one figure, and never Ray.
"""

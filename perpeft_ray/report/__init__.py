"""Tables, statistics, figures and the page of a study; it only reads what the store has.

Optuna is imported for the one figure that needs it, Ray never.
"""

"""What a study leaves behind: its Parquet files and the tables made of them.

It reads the study's records. Optuna is imported for the one figure that needs it, Ray never.
"""

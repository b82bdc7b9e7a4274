"""What a study leaves behind: its Parquet files and the tables made of them.

Reads `perpeft_ray.study.record` and nothing else of the study; never imports Ray.
"""

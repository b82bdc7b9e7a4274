"""From raw data to the folder format: `perpeft prepare amazon2023|release|parquet|table`."""

"""What studies ask beyond the ablation: which trials, and in which settings."""

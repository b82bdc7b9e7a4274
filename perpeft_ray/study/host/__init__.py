"""Where a study runs: Ray and its room for trials, the owner of a folder, a job, a full disk."""

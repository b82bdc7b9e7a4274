"""The machine or cluster of a study: Ray, room for trials, jobs, a full disk."""

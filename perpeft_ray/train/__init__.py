"""The three stages of PerPEFT as plain torch, and a thin adapter to Ray Train."""

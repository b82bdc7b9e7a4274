"""Finished trials' models: exported, loaded and used outside the study."""

"""Models that leave the study: a finished trial's weights, exported, loaded and used."""

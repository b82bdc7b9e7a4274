"""The study: searches, compares and repeats, and places its trials on Ray."""

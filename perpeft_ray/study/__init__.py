"""The study: what is searched, compared and repeated, and how its trials are placed on Ray."""

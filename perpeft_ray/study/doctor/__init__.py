"""Checks of a cluster before a study: what nodes say, what it means, what to change."""

"""Shows what modules do: an item as two groups see it, a user under three modules."""

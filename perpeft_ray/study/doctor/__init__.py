"""`perpeft doctor`: examines a cluster before a study and says what to change."""

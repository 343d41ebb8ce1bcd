"""Plans: text in, a checked message, its hash, and the armed faults of a run out."""

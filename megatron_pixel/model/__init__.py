"""The decoder that reads patches and tokens: stages, heads, objectives and their losses."""

"""Where a hub keeps the records of streams."""

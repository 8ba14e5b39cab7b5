"""Running the nodes of a topology."""

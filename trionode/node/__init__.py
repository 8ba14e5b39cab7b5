"""The node: one nursery that holds everything else."""

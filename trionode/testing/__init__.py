"""What tests use, those of trionode and those of its users: contracts, networks and faults."""

"""A topology without bytes, keys, tasks and time: nodes whose hops do to routes and facts what those of running nodes do."""

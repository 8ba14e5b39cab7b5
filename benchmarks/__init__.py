"""What trionode costs beside plain Trio TCP, all of it measured in one run: `python -m benchmarks`."""

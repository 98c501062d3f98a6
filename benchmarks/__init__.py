"""Plain reference against ours, in one process: ``python -m benchmarks`` from the checkout. Not installed."""

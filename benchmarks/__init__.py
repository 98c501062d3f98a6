"""Benchmarks of speed, memory and accuracy, run from the checkout (``python -m benchmarks``). Not installed."""

"""python -m cuconv, and what the benchmarks share with it: clocks, an oracle, the calls that are timed."""

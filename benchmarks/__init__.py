"""Benchmarks: cuconv against its peers, in one process and run, checked before they are timed.

python -m benchmarks measures and keeps records in `results`; python -m benchmarks.report writes the tables
and plots that the README and docs show from them; python -m benchmarks.sizes measures what installs take,
python -m benchmarks.host what a call takes of the host.
"""

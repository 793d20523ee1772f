"""Benchmarks: one question a file, the peers measured in the same run.

python -m benchmarks.bench_roundtrip                       one table
python -m pytest benchmarks --benchmark-enable             all, with pytest-benchmark's statistics
"""

"""Benchmarks: one question a file, the peers measured in the same run.

python -m benchmarks                                       the whole proof, one table
python -m benchmarks.bench_roundtrip                       one question
python -m pytest benchmarks --benchmark-enable             all, with pytest-benchmark's statistics
"""

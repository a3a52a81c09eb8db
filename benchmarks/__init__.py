"""Throughput, CPU, latency and memory of laraman beside its peers: ``python -m benchmarks.run --help``."""

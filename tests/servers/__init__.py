"""Servers of our own, for tests, benchmarks and examples: started on loopback, in a directory of their own."""

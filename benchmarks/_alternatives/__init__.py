"""What `benchmarks.alternatives` is made of: one scenario, one judge, and a module for each tool."""

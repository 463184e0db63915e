"""The laboratory: load, benchmarks and proofs, and the figures they leave."""

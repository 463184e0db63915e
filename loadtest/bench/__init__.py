"""Benchmarks that need no service: detection, allocation, policies, and the ledger alone."""

"""Proof by exhaustion: every interleaving of a few sessions, on a real PostgreSQL."""

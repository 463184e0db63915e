"""The schema's history, written by hand. It imports nothing of `booking`: history is frozen."""

"""Real and synthetic demand, driven through the running API, and what it measured."""

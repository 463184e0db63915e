"""Trips, real and synthetic, and their replay through the running API."""

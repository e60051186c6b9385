"""Measures the service beside its baselines; see README.md here."""

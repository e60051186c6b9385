"""Measure the service against its baselines; see README.md here."""

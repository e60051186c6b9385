"""Stored answers: an exact LRU in the process, and the stores that processes share behind it."""

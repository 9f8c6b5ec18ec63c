"""The embedded corpus, as package data (see README.md)."""

"""Headwater's services; see docs/ and README.md for how they fit together."""

"""Prices: the versions of the price book, re-rating by them, and months that close."""

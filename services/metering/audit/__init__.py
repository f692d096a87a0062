"""The audit: every usage event in the stream is in the cost tables, and every sum is the sum of its rows."""

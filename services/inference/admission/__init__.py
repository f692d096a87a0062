"""Admission: rate limits and budgets, reserved before a call and settled after it, exact over all replicas."""

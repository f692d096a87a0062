"""Benchmarks: one runnable file per figure that the README quotes; see README.md for what each measures."""

"""Calls in: translate, delegate. One module a subject; assembly.py makes one servicer of those of MeteringService."""

"""Deployments: several endpoints behind one model alias, and what to do when one of them has a bad day."""

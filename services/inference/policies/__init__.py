"""Cascade policies: what they may say, where they are kept, and what their gates compute while serving."""

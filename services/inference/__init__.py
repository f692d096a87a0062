"""Inference: questions in, answers out, by the smallest model that is good enough.

Hears  nothing.
Tells  UsageSettled.
Serves InferenceService; calls RetrievalService.
Owns   nothing: a request lives and ends in memory.
"""

"""Inference: questions in, answers out, by the smallest model that is good enough.

Hears nothing; tells UsageSettled; calls RetrievalService.Search; serves InferenceService (Generate, GenerateStream);
owns nothing: a request lives and ends in memory.
"""

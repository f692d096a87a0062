"""Inference: questions in, answers out, by the smallest model that is good enough.

Hears  nothing.
Tells  UsageSettled, BudgetThresholdReached.
Serves InferenceService and PolicyService; calls RetrievalService.
Owns   policies and where each applies, what is spent and reserved of every budget, the counts of rate limits, and the
       key of users' pseudonyms; a request itself lives and ends in memory.
"""

"""Retrieval: questions in, passages out.

Hears  nothing.
Tells  UsageSettled.
Serves RetrievalService.
Owns   nothing: what it reads is ingest's to write.
"""

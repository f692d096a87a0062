"""Ingest: documents in.

Hears  DocumentAccepted (its own).
Tells  DocumentAccepted, DocumentIndexed, DocumentFailed, DocumentDeleted, UsageSettled.
Serves IngestService.
Owns   the raw documents, their records, and what the vector store holds.
"""

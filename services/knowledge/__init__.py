"""What ingest writes and retrieval reads: passages, embeddings, the vector store and its collections."""

"""Messages in: none. Inference hears nothing; it answers calls (rpc.py)."""

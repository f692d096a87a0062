"""Messages in: retrieval hears none; every service keeps this room so that one knows where to look."""

"""Model providers: their protocols, their token accounting and the HTTP to reach them."""

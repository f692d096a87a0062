"""What services say to each other: events, streams, tenant ids, prices, failures. Imports no package of ours."""

"""What services say to each other: events, streams, tenant ids, prices, kinds of failure. Imports no other package of ours."""

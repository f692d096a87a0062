"""How any service runs: settings, bus, rpc server and clients, caller identity, telemetry, process. No domain words."""

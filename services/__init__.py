"""Headwater's services; see docs/ and README.md for how they fit together."""

import os

# gRPC's fork handlers serve children that go on using gRPC; ours become another program at once, and the handlers
# would only complain about it on stderr. gRPC reads this when it is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

"""What someone who started the platform on a laptop wants to know next."""

from pathlib import Path


def welcome(address: str, data_dir: Path) -> str:
    """How to call a platform that listens on `address`, as lines to copy."""
    return f"""\
Headwater is ready on {address}. Its data is in {data_dir}. Ctrl-C stops it.

In another terminal:

  headwater tenant create acme
  headwater key issue acme
  headwater put examples/acme
  headwater ask "How many days of annual leave do full-time employees receive?"

With buf (the API describes itself by reflection):

  buf curl --protocol grpc --http2-prior-knowledge \\
    --header "authorization: Bearer $HEADWATER_KEY" \\
    --data '{{"question": "How long must passwords be?"}}' \\
    http://{address}/headwater.inference.v1.InferenceService/Generate

With Python, in ten lines: examples/client.py

  HEADWATER_ADDRESS={address} HEADWATER_KEY=hw_... python examples/client.py "How long must passwords be?"
"""

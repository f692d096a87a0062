"""A client in ten lines: HEADWATER_KEY=hw_… python examples/client.py "How many days of leave are there?"."""

import os
import sys

import grpc
from headwater.inference.v1 import inference_pb2, inference_pb2_grpc

channel = grpc.insecure_channel(os.environ.get("HEADWATER_ADDRESS", "127.0.0.1:7443"))
inference = inference_pb2_grpc.InferenceServiceStub(channel)
answer = inference.Generate(
    inference_pb2.GenerateRequest(question=sys.argv[1], feature="example"),
    metadata=(("authorization", f"Bearer {os.environ['HEADWATER_KEY']}"),),
    timeout=30,
).answer
print(answer.text, [citation.document_name for citation in answer.citations], answer.stage, answer.cost_usd)

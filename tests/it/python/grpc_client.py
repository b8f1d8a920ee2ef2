"""Calls all four kinds through the proxy and checks what comes back. usage: grpc_client.py HOST:PORT [refused]"""

import queue
import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1], options=[("grpc.enable_http_proxy", 0)])
LIMIT = 15


def check(got, wanted):
    if got != wanted:
        sys.exit(f"got {got!r}, not {wanted!r}")


if len(sys.argv) > 2:
    # The one credit is taken by a stream: the refusal must be a gRPC status that clients know to come back from.
    held = channel.unary_stream("/test.Echo/Endless")(b"", timeout=LIMIT)
    check(next(held), b"first")
    try:
        channel.unary_unary("/test.Echo/Unary")(b"", timeout=LIMIT)
        sys.exit("not refused")
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            sys.exit(f"refused with {error.code()}: {error.details()}")
    held.cancel()
    print("ok")
    sys.exit(0)

# unary, with metadata both ways
response, call = channel.unary_unary("/test.Echo/Unary").with_call(
    b"hello", timeout=LIMIT, metadata=(("x-client", "me"),)
)
check(response, b"unary:hello")
check(dict(call.initial_metadata())["x-initial"], "one")
trailing = dict(call.trailing_metadata())
check(trailing["x-trailing"], "me")
check(trailing["x-raw-bin"], b"\x00\xff")
check(call.code(), grpc.StatusCode.OK)

# a message larger than any window
large = b"x" * 3_000_000
check(channel.unary_unary("/test.Echo/Unary")(large, timeout=LIMIT), b"unary:" + large)

# server streaming
check(
    list(channel.unary_stream("/test.Echo/ServerStream")(b"200", timeout=LIMIT)),
    [b"%d" % at for at in range(200)],
)

# client streaming
check(
    channel.stream_unary("/test.Echo/ClientStream")(iter([b"a", b"b", b"c"]), timeout=LIMIT),
    b"a+b+c",
)

# bidirectional: each answer is awaited before the next question, so nothing may be held back
questions = queue.Queue()
answers = channel.stream_stream("/test.Echo/Bidi")(iter(questions.get, None), timeout=LIMIT)
for at in range(20):
    questions.put(b"%d" % at)
    check(next(answers), b"echo:%d" % at)
questions.put(None)
check(list(answers), [])

# a failure, with its message and its trailers
try:
    channel.unary_unary("/test.Echo/Failing")(b"", timeout=LIMIT)
    sys.exit("no failure")
except grpc.RpcError as error:
    check(error.code(), grpc.StatusCode.FAILED_PRECONDITION)
    check(error.details(), "not today: ä")
    check(dict(error.trailing_metadata())["x-why"], "because")

# a deadline, which cancels the call
try:
    list(channel.unary_stream("/test.Echo/Endless")(b"", timeout=0.3))
    sys.exit("no deadline")
except grpc.RpcError as error:
    check(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)

print("ok")

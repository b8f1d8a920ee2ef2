"""A gRPC server with handlers on bytes, of all four kinds. Prints its port; ends with its standard input."""

import sys
from concurrent import futures

import grpc


def unary(request, context):
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("x-initial", "one"),))
    context.set_trailing_metadata((("x-trailing", metadata.get("x-client", "none")), ("x-raw-bin", b"\x00\xff")))
    return b"unary:" + request


def server_stream(request, context):
    for at in range(int(request)):
        yield b"%d" % at


def client_stream(requests, context):
    return b"+".join(requests)


def bidi(requests, context):
    for request in requests:
        yield b"echo:" + request


def failing(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today: ä")


def endless(request, context):
    gone = futures.Future()
    context.add_callback(lambda: (print("cancelled"), gone.set_result(None)))
    yield b"first"
    gone.result(timeout=30)


HANDLERS = {
    "Unary": grpc.unary_unary_rpc_method_handler(unary),
    "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
    "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
    "Bidi": grpc.stream_stream_rpc_method_handler(bidi),
    "Failing": grpc.unary_unary_rpc_method_handler(failing),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
}

server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", HANDLERS),))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(0)

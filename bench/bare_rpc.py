"""What a call costs in gRPC itself: a server that answers at once and knows nothing of Larder, in its own process.

Started by bench.metadata. Prints where it listens on one line, and serves until it is stopped. Same library, same loop
and as many bytes as in a Match, without reading them.
"""

import asyncio

import grpc
import uvloop

METHOD = "/bare/Call"


async def serve() -> None:
    async def answer(request: bytes, context: object) -> bytes:
        return b"done"

    server = grpc.aio.server()
    service, _, method = METHOD[1:].partition("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"bare gRPC ready: 127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve())

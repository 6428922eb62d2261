"""A WebSocket peer made of the `websockets` package, for tests/roles/transport_python.rs.

`ws_peer.py server [CERT KEY [CLIENT_CA]]` prints its port and serves until its standard input ends.
`ws_peer.py client URL [CA]` runs its checks against an echo server, prints "ok" and ends.
"""

import asyncio
import http
import ssl
import sys

import websockets
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve

MESSAGES = 1000
LARGE = 16 << 20


async def fragments(ws, count, pongs):
    """A message in `count` fragments with a ping before each."""
    for n in range(count):
        pongs.append(await ws.ping())
        yield f"{n} "


async def handle(ws):
    path = ws.request.path
    if path == "/echo":
        try:
            async for message in ws:
                await ws.send(message)
        except websockets.ConnectionClosedError as closed:
            print(closed.sent and closed.sent.code, flush=True)
    elif path == "/fragments":
        pongs = []
        await ws.send(fragments(ws, 256, pongs))
        for pong in pongs:
            await pong
        await ws.send("all pongs")
        await ws.wait_closed()
    elif path == "/closes":
        await ws.recv()
        await ws.send("last words")
        await ws.close(4000, "bye")
    elif path == "/who":
        shown = ws.transport.get_extra_info("peercert")
        await ws.send(f"{shown['subjectAltName'][0][1]} with {ws.request.headers['User-Agent']}")
        await ws.wait_closed()
    elif path == "/closed":
        await ws.wait_closed()
        print(ws.close_code, ws.close_reason, flush=True)


def refuse(connection, request):
    if request.path == "/refused":
        return connection.respond(http.HTTPStatus.FORBIDDEN, "not you\n")
    return None


async def server(cert=None, key=None, client_ca=None):
    context = None
    if cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    # Only /echo has large messages, but the limit is one for all; 20 MiB lets those pass and one of 21 not.
    async with serve(
        handle, "127.0.0.1", 0, ssl=context, process_request=refuse, max_size=20 << 20, ping_interval=None
    ) as listener:
        print(listener.sockets[0].getsockname()[1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def client(url, ca=None):
    context = ssl.create_default_context(cafile=ca) if ca else None
    settings = dict(ssl=context, max_size=None, ping_interval=None)

    async with connect(url + "/echo", **settings) as ws:
        assert not ws.protocol.extensions, "compression was negotiated"

        async def send():
            for n in range(MESSAGES):
                await ws.send(f"message {n}")
                if n % 20 == 0:
                    await (await ws.ping())

        sending = asyncio.create_task(send())
        for n in range(MESSAGES):
            assert await ws.recv() == f"message {n}"
        await sending

        pongs = []
        await ws.send(fragments(ws, 256, pongs))
        assert await ws.recv() == "".join(f"{n} " for n in range(256))
        await asyncio.gather(*pongs)

        large = "x" * LARGE
        await ws.send(large)
        assert await ws.recv() == large
        await ws.close(3001, "enough")
        assert (ws.close_code, ws.close_reason) == (3001, "enough"), ws.close_code

    async with connect(url + "/closes", **settings) as ws:
        await ws.send("go")
        assert await ws.recv() == "last words"
        await ws.wait_closed()
        assert (ws.close_code, ws.close_reason) == (4000, "bye"), ws.close_code

    async with connect(url + "/echo", **settings) as ws:
        await ws.send("x" * (LARGE + 1))
        await ws.wait_closed()
        assert ws.close_code == 1009, ws.close_code

    try:
        await connect(url + "/refused", **settings)
    except websockets.InvalidStatus as refusal:
        assert refusal.response.status_code == 403, refusal
        assert refusal.response.body == b"not you", refusal.response.body
    else:
        raise AssertionError("not refused")
    print("ok", flush=True)


asyncio.run({"server": server, "client": client}[sys.argv[1]](*sys.argv[2:]))

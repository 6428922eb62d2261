"""A user's client of a streaming job whose server is tests/fixtures/streaming_server.sh, for the scripts beside this."""

import ssl

import aiohttp
from compute_horde_core.certificate import serialize_certificate, serialize_private_key

LIMIT = 60
COMMAND = (
    "busybox nc -ll -p 8000 -e sh /volume/job/server.sh & until [ -e /output/quit ]; do busybox sleep 0.1; done; echo served"
)


def tls(folder, server, identity):
    """What trusts the server and shows the client's certificate, if there is one."""
    (folder / "server.pem").write_text(server)
    context = ssl.create_default_context(cafile=folder / "server.pem")
    if identity is not None:
        certificate, key = identity
        (folder / "client.pem").write_bytes(serialize_certificate(certificate))
        (folder / "client.key").write_bytes(serialize_private_key(key))
        context.load_cert_chain(folder / "client.pem", folder / "client.key")
    return context


async def refused(url, context):
    """Why a client is not let in."""
    try:
        async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
            return f"let in: {response.status} {await response.text()}"
    except (aiohttp.ClientError, ssl.SSLError, OSError) as error:
        return f"{type(error).__name__}: {error}"


async def talk(base, context):
    seen = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        async with session.get(f"{base}/echo/a%20b?c=d", headers={"X-Mine": "1"}) as response:
            seen["echo"] = [response.status, (await response.text()).strip().split("|")]
        async with session.get(f"{base}/stream") as response:
            parts = [(await response.content.readline()).decode()]
            # The server writes its last line only after this, so the first one came before it was written.
            async with session.get(f"{base}/go") as gone:
                parts.append(gone.status)
            parts.append((await response.content.readline()).decode())
            seen["stream"] = parts
        async with session.ws_connect(f"{base}/ws") as socket:
            await socket.send_str("zażółć")
            await socket.send_bytes(bytes(range(100)))
            text, data = await socket.receive(LIMIT), await socket.receive(LIMIT)
            seen["socket"] = [text.data, data.data == bytes(range(100))]
        seen["quit"] = (await session.get(f"{base}/quit")).status
    return seen

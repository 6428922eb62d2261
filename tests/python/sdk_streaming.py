"""Runs a streaming job through the official SDK, talks to its server, and prints what came of it, as one JSON object.

Arguments: the facilitator's URL, the validator's SS58 address, the user's key URI, the job's image, the file of the
server (tests/fixtures/streaming_server.sh).
"""

import asyncio
import json
import pathlib
import ssl
import sys
import tempfile
from datetime import timedelta

import aiohttp
import bittensor_wallet
from compute_horde_core.certificate import generate_certificate, serialize_certificate, serialize_private_key
from compute_horde_sdk import v1
from compute_horde_sdk._internal import sdk
from cryptography import x509

# The SDK asks every three seconds; the test has no time for that.
sdk.JOB_REFRESH_INTERVAL = timedelta(milliseconds=50)

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


async def main(url, validator, user, image, server):
    key = bittensor_wallet.Keypair.create_from_uri(user)
    client = v1.ComputeHordeClient(hotkey=key, compute_horde_validator_hotkey=validator, facilitator_url=url)
    script = pathlib.Path(server).read_bytes()
    job = await client.create_job(
        v1.ComputeHordeJobSpec(
            executor_class=v1.ExecutorClass.always_on__test,
            job_namespace="SN1.0",
            docker_image=image,
            args=["sh", "-c", COMMAND],
            input_volumes={"/volume/job": v1.InlineInputVolume.from_file_contents("server.sh", script)},
            streaming=True,
            streaming_start_time_limit_sec=30,
            download_time_limit_sec=30,
            execution_time_limit_sec=LIMIT,
            upload_time_limit_sec=30,
        )
    )
    try:
        await job.wait_for_streaming(timeout=LIMIT)
    except Exception as error:
        raise RuntimeError([(str(entry.status), entry.metadata) for entry in job.status_history]) from error
    certificate = x509.load_pem_x509_certificate(job.streaming_server_cert.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    base = f"https://{job.streaming_server_address}:{job.streaming_server_port}"
    right = (job.streaming_public_cert, job.streaming_private_key)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        none = await refused(f"{base}/echo", tls(folder, job.streaming_server_cert, None))
        other = await refused(f"{base}/echo", tls(folder, job.streaming_server_cert, generate_certificate("127.0.0.1")))
        seen = await talk(base, tls(folder, job.streaming_server_cert, right))
    await job.wait(timeout=LIMIT)
    return {
        **seen,
        "uuid": job.uuid,
        "address": job.streaming_server_address,
        "names": [str(name.value) for name in names],
        "none": none,
        "other": other,
        "statuses": [str(entry.status) for entry in job.status_history],
        "stdout": job.result.stdout,
    }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))

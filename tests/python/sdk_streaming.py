"""Runs a streaming job through the official SDK, talks to its server, and prints what came of it, as one JSON object.

Arguments: the facilitator's URL, the validator's SS58 address, the user's key URI, the job's image, the file of the
server (tests/fixtures/streaming_server.sh).
"""

import asyncio
import json
import pathlib
import sys
import tempfile
from datetime import timedelta

import bittensor_wallet
from compute_horde_core.certificate import generate_certificate
from compute_horde_sdk import v1
from compute_horde_sdk._internal import sdk
from cryptography import x509
from streaming_client import COMMAND, LIMIT, refused, talk, tls

# The SDK asks every three seconds; the test has no time for that.
sdk.JOB_REFRESH_INTERVAL = timedelta(milliseconds=50)

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

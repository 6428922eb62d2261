"""Runs a streaming job on a miner through the official `OrganicMinerClient`, as a validator that is its user, too; prints
what came of it, as one JSON object.

Arguments: the miner's host and port, its SS58 address, the key URI of a validator that it knows, the job's image, the
file of the server (tests/fixtures/streaming_server.sh).
"""

import asyncio
import base64
import io
import json
import pathlib
import sys
import tempfile
import uuid
import zipfile

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.management import call_command

settings.configure(
    USE_TZ=True,
    INSTALLED_APPS=["compute_horde.receipts"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()

from bittensor import Keypair  # noqa: E402
from compute_horde.miner_client import organic  # noqa: E402
from compute_horde_core.certificate import generate_certificate, serialize_certificate  # noqa: E402
from compute_horde_core.executor_class import ExecutorClass  # noqa: E402
from compute_horde_core.streaming import StreamingDetails  # noqa: E402
from compute_horde_core.volume import InlineVolume  # noqa: E402
from streaming_client import COMMAND, LIMIT, talk, tls  # noqa: E402


class Client(organic.OrganicMinerClient):
    """Talks to the job's server as soon as it is told where it is."""

    identity = None
    seen = None

    async def notify_streaming_readiness(self, msg):
        signed = Keypair(ss58_address=self.miner_hotkey).verify(msg.blob_for_signing(), msg.miner_signature)
        with tempfile.TemporaryDirectory() as folder:
            context = tls(pathlib.Path(folder), msg.public_key, self.identity)
            self.seen = {"signed": signed, **await talk(f"https://{msg.ip}:{msg.port}", context)}


async def main(host, port, miner, validator, image, server):
    await sync_to_async(call_command)("migrate", verbosity=0)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("job/server.sh", pathlib.Path(server).read_bytes())
    identity = generate_certificate("127.0.0.1")
    job = organic.OrganicJobDetails(
        job_uuid=str(uuid.uuid4()),
        executor_class=ExecutorClass.always_on__test,
        docker_image=image,
        docker_run_cmd=["sh", "-c", COMMAND],
        docker_run_options_preset="none",
        volume=InlineVolume(contents=base64.b64encode(archive.getvalue()).decode()),
        job_timing=organic.OrganicJobDetails.TimingDetails(5, LIMIT, LIMIT, LIMIT, LIMIT),
        total_job_timeout=LIMIT,
        streaming_details=StreamingDetails(public_key=serialize_certificate(identity[0]).decode()),
    )
    client = Client(miner, host, int(port), job.job_uuid, Keypair.create_from_uri(validator))
    client.identity = identity
    try:
        stdout, *_ = await organic.execute_organic_job_on_miner(client, job, LIMIT, LIMIT)
    except (organic.MinerReportedHordeFailed, organic.MinerReportedJobFailed) as failed:
        raise RuntimeError(failed.msg.model_dump()) from failed
    return {"uuid": job.job_uuid, "stdout": stdout, **client.seen}


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))

"""Runs jobs on a miner through the official `OrganicMinerClient` and prints what the client made of them, as one JSON object.

Arguments: the miner's host and port, its SS58 address, the key URI of a validator that it knows, and that of one that it
does not. The miner has one executor, of class `always_on.test`, whose jobs are plain processes.
"""

import asyncio
import base64
import io
import json
import os
import sys
import tempfile
import uuid
import zipfile

import django
from aiohttp import web
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
from compute_horde_core.executor_class import ExecutorClass  # noqa: E402
from compute_horde_core.output_upload import MultiUpload, SingleFilePutUpload  # noqa: E402
from compute_horde_core.volume import InlineVolume  # noqa: E402

HOST, PORT, MINER, VALIDATOR, STRANGER = sys.argv[1:]
# Only a bug reaches this.
LONG = 60


class Client(organic.OrganicMinerClient):
    """Notes what it is told; a step's hook is awaited before the client goes on."""

    def __init__(self, *args, hooks):
        super().__init__(*args)
        self.hooks = hooks
        self.steps, self.complaints = [], []
        self.complained = asyncio.Event()

    async def step(self, name):
        self.steps.append(name)
        if name in self.hooks:
            await self.hooks[name](self)

    async def notify_job_accepted(self, msg):
        await self.step("accepted")

    async def notify_executor_ready(self, msg):
        await self.step("executor_ready")

    async def notify_volumes_ready(self, msg):
        await self.step("volumes_ready")

    async def notify_execution_done(self, msg):
        await self.step("execution_done")

    async def notify_generic_error(self, msg):
        self.complaints.append(msg.details)
        self.complained.set()

    async def notify_receipt_failure(self, comment):
        self.complaints.append(comment)

    async def notify_send_failure(self, msg):
        self.complaints.append(msg)


async def run(script, *, validator=VALIDATOR, miner=MINER, reservation=LONG, timed=True, execution=LONG, hooks={}, env={}, **details):
    """Runs a job to its end and tells what came of it."""
    job = organic.OrganicJobDetails(
        job_uuid=str(uuid.uuid4()),
        executor_class=ExecutorClass.always_on__test,
        docker_image="image",
        docker_run_cmd=["sh", "-c", script],
        job_timing=organic.OrganicJobDetails.TimingDetails(5, LONG, execution, LONG, LONG) if timed else None,
        total_job_timeout=LONG,
        **details,
    )
    # By which the job's processes are found.
    job.env = {"JOB": job.job_uuid, **env}
    key = Keypair.create_from_uri(validator)
    client = Client(miner, HOST, int(PORT), job.job_uuid, key, hooks=hooks)
    told = {"uuid": job.job_uuid, "steps": client.steps, "complaints": client.complaints}
    try:
        stdout, stderr, artifacts, uploads = await organic.execute_organic_job_on_miner(client, job, reservation, LONG)
        told |= {
            "end": "finished",
            "stdout": stdout,
            "stderr": stderr,
            "artifacts": {path: list(base64.b64decode(data)) for path, data in artifacts.items()},
            "uploads": {path: json.loads(answer) for path, answer in uploads.items()},
        }
    except organic.MinerReportedJobFailed as failed:
        told |= {"end": "failed", "details": failed.msg.model_dump(mode="json")}
    except organic.MinerRejectedJob as rejected:
        excuses = rejected.msg.receipts
        assert all(e.verify_miner_signature() and e.verify_validator_signature() for e in excuses), excuses
        told |= {"end": "rejected", "reason": rejected.msg.reason, "excuses": [e.payload.job_uuid for e in excuses]}
    except organic.MinerTimedOut as timed_out:
        told |= {"end": "timed out", "reason": timed_out.reason}
    if client.miner_manifest.done():
        told["manifest"] = dict(client.miner_manifest.result())
    if client.miner_machine_specs is not None:
        told["specs"] = sorted(client.miner_machine_specs.specs)
    return told


async def stranger():
    """Connects as a validator that the miner does not know, and gives up when it is told.

    Not by `run`: the client would go on for a minute or more if the miner's close overtook its authentication each time.
    """
    client = Client(MINER, HOST, int(PORT), str(uuid.uuid4()), Keypair.create_from_uri(STRANGER), hooks={})
    connecting = asyncio.create_task(client.connect())
    await client.complained.wait()
    connecting.cancel()
    await asyncio.wait([connecting])
    await client.close()
    return {"complaints": client.complaints[:1], "manifest": client.miner_manifest.done()}


async def good():
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr("dir/in.txt", "zażółć\n")
    received = {}

    async def put(request):
        received[request.path] = (await request.read()).decode()
        return web.Response(text="stored")

    server = web.AppRunner(web.Application())
    server.app.router.add_put("/{name}", put)
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    try:
        port = site._server.sockets[0].getsockname()[1]
        upload = SingleFilePutUpload(url=f"http://127.0.0.1:{port}/o.txt", relative_path="o.txt")
        told = await run(
            'cat volume/dir/in.txt; echo "$GREETING" >&2; printf "\\000\\377" > artifacts/a.bin; echo o > output/o.txt',
            env={"GREETING": "hello"},
            volume=InlineVolume(contents=base64.b64encode(archive.getvalue()).decode()),
            output=MultiUpload(uploads=[upload]),
            artifacts_dir="/artifacts",
            allowance_job_value=7,
            allowance_blocks=[3, 4],
        )
    finally:
        await server.cleanup()
    return told | {"received": received}


async def interrupted(folder):
    """A job that keeps the one executor busy while another is asked for, and whose connection is lost meanwhile."""
    path = os.path.join(folder, "gate")
    os.mkfifo(path)
    # Both ends, so that neither opening nor writing waits for the job.
    gate = os.open(path, os.O_RDWR)
    others = []

    async def ask_for_another(client):
        others.append(await run("true"))

    async def cut_and_let_go(client):
        client.transport.ws.transport.abort()
        os.write(gate, b"through\n")

    hooks = {"accepted": ask_for_another, "volumes_ready": cut_and_let_go}
    try:
        told = await run('read line < "$GATE"; echo "$line"', env={"GATE": path}, hooks=hooks)
    finally:
        os.close(gate)
    return told, others[0]


async def main():
    # In the thread that the client's own queries run in, because the database lives in its connection.
    await sync_to_async(call_command)("migrate", verbosity=0)
    with tempfile.TemporaryDirectory() as folder:
        async with asyncio.timeout(2 * LONG):
            told = {"good": await good()}
            told["failing"] = await run("echo partial; echo why >&2; exit 3", timed=False)
            told["endless"] = await run(
                "echo begun; echo a > artifacts/x; exec sleep 600", execution=1, artifacts_dir="/artifacts"
            )
            told["interrupted"], told["busy"] = await interrupted(folder)
            # The client dials again at once for as long as it is turned away, so a second is many connections.
            wrong_miner = Keypair.create_from_uri("//Nobody").ss58_address
            told["wrong_miner"] = await run("true", miner=wrong_miner, reservation=1)
            told["stranger"] = await stranger()
    return told


print(json.dumps(asyncio.run(main())))

"""An executor of the parts that the official packages have for one: its connection, its messages, its uploads.

The application around them, which runs jobs in containers, is in no package; this runs the job's command as a process
in a folder with `output`. The only argument: the seconds until its job comes.
"""

import asyncio
import json
import os
import pathlib
import sys
import tempfile

from compute_horde.miner_client.base import AbstractMinerClient
from compute_horde.protocol_consts import JobFailureReason, JobStage
from compute_horde.protocol_messages import (
    MinerToExecutorMessage,
    V0ExecutionDoneRequest,
    V0ExecutorReadyRequest,
    V0InitialJobRequest,
    V0JobFailedRequest,
    V0JobFinishedRequest,
    V0VolumesReadyRequest,
)
from compute_horde.transport import WSTransport
from compute_horde_core.output_upload import OutputUploader
from pydantic import TypeAdapter


class MinerClient(AbstractMinerClient):
    def __init__(self, miner, token):
        self.url = f"{miner}/v0.1/executor_interface/{token}"
        super().__init__(miner, WSTransport(miner, self.url))
        self.initial, self.full = asyncio.Future(), asyncio.Future()

    def miner_url(self):
        return self.url

    def parse_message(self, raw_msg):
        return TypeAdapter(MinerToExecutorMessage).validate_json(raw_msg)

    async def handle_message(self, msg):
        (self.initial if isinstance(msg, V0InitialJobRequest) else self.full).set_result(msg)


async def run(client, folder):
    initial = await asyncio.wait_for(client.initial, int(sys.argv[1]))
    job = initial.job_uuid
    await client.send_model(V0ExecutorReadyRequest(job_uuid=job))
    full = await client.full
    output = folder / "output"
    output.mkdir()
    await client.send_model(V0VolumesReadyRequest(job_uuid=job))
    with open(folder / "stdout", "w+") as stdout:
        process = await asyncio.create_subprocess_exec(*full.docker_run_cmd, cwd=folder, stdout=stdout)
        try:
            code = await asyncio.wait_for(process.wait(), initial.executor_timing.execution_time_limit)
        except TimeoutError:
            process.kill()
            code = None
        stdout.seek(0)
        text = stdout.read()
    if code != 0:
        reason = JobFailureReason.TIMEOUT if code is None else JobFailureReason.NONZERO_RETURN_CODE
        failed = V0JobFailedRequest(
            job_uuid=job,
            stage=JobStage.EXECUTION,
            reason=reason,
            message="as the official executor says it",
            docker_process_exit_status=code,
            docker_process_stdout=text,
        )
        return await client.send_model(failed)
    await client.send_model(V0ExecutionDoneRequest(job_uuid=job))
    uploads = {}
    if full.output_upload:
        uploads = await OutputUploader.for_upload_output(full.output_upload).upload(output)
    finished = V0JobFinishedRequest(
        job_uuid=job,
        docker_process_stdout=text,
        # Where it would serve the clients of a streaming job.
        docker_process_stderr=os.environ["NGINX_PORT"],
        artifacts={},
        upload_results={name: json.dumps(answer.model_dump()) for name, answer in uploads.items()},
    )
    await client.send_model(finished)


async def main():
    with tempfile.TemporaryDirectory() as folder:
        async with MinerClient(os.environ["MINER_ADDRESS"], os.environ["EXECUTOR_TOKEN"]) as client:
            await run(client, pathlib.Path(folder))


asyncio.run(main())

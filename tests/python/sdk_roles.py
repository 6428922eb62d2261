"""Runs jobs of every end through the official SDK, and prints what became of them as one JSON object.

Arguments: the facilitator's URL, the validator's SS58 address, the user's key URI.
"""

import asyncio
import json
import sys
from datetime import timedelta

import bittensor_wallet
from compute_horde_sdk import v1
from compute_horde_sdk._internal import sdk

# The SDK asks every three seconds; the test has no time for that, nor for the pause before a second attempt.
sdk.JOB_REFRESH_INTERVAL = timedelta(milliseconds=50)
sdk.HTTP_RETRY_MIN_WAIT_SECONDS = 0.01


def spec(command, seconds=60):
    return v1.ComputeHordeJobSpec(
        executor_class=v1.ExecutorClass.always_on__test,
        job_namespace="SN1.0",
        docker_image="none",
        args=["sh", "-c", command],
        download_time_limit_sec=5,
        execution_time_limit_sec=seconds,
        upload_time_limit_sec=5,
        artifacts_dir="/artifacts",
    )


async def ended(client, job_spec, **more):
    job = await client.create_job(job_spec, **more)
    await job.wait(timeout=120)
    return job


async def main(url, validator, user):
    key = bittensor_wallet.Keypair.create_from_uri(user)
    client = v1.ComputeHordeClient(hotkey=key, compute_horde_validator_hotkey=validator, facilitator_url=url)
    good = await ended(client, spec('echo out; echo err >&2; echo kept > "$PHALANX_ARTIFACTS_DIR/a"'))
    failed = await ended(client, spec("echo before; exit 3"))
    late = await ended(client, spec("sleep 60", seconds=1))
    # There is no trusted miner.
    rejected = await ended(client, spec("true"), on_trusted_miner=True)
    attempts = []
    complete = await client.run_until_complete(
        spec("echo done"), job_attempt_callback=lambda job: attempts.append(job.uuid), timeout=120
    )
    tried = await client.run_until_complete(
        spec("false"), job_attempt_callback=lambda job: attempts.append(job.uuid), timeout=120, max_attempts=2
    )
    try:
        cheated = await client.report_cheated_job(good.uuid, failed.uuid)
    except v1.ComputeHordeNotFoundError:
        cheated = "not found"
    return {
        "good": [str(good.status), good.result.stdout, good.result.stderr, [d.decode() for d in good.result.artifacts.values()]],
        "history": [str(entry.status) for entry in good.status_history],
        "failed": [str(failed.status), failed.error.reason, failed.result.stdout],
        "late": [str(late.status), late.error.reason],
        "rejected": [str(rejected.status), rejected.error.reason],
        "complete": [str(complete.status), str(tried.status), len(attempts)],
        "listed": [job.uuid async for job in client.iter_jobs()] == [good.uuid, failed.uuid, late.uuid, rejected.uuid, *attempts],
        "trusted": (await client.get_job(rejected.uuid)).uuid == rejected.uuid,
        "cheated": cheated,
    }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))

"""Uses a facilitator through the official SDK and prints what the SDK made of the answers, as one JSON object.

Arguments: the facilitator's URL, the validator's SS58 address, the user's key URI, an expired token of that user.
The validator completes jobs of the image `good` and rejects all others.
"""

import asyncio
import json
import sys
from datetime import timedelta

import bittensor_wallet
from compute_horde_sdk import v1
from compute_horde_sdk._internal import sdk

# The SDK asks every three seconds; the test has no time for that, nor for the pause before a second attempt.
sdk.JOB_REFRESH_INTERVAL = timedelta(milliseconds=20)
sdk.HTTP_RETRY_MIN_WAIT_SECONDS = 0.01


def spec(image, **more):
    return v1.ComputeHordeJobSpec(
        executor_class=v1.ExecutorClass.always_on__test,
        job_namespace="SN1.0",
        docker_image=image,
        download_time_limit_sec=5,
        execution_time_limit_sec=10,
        upload_time_limit_sec=6,
        **more,
    )


async def main(url, validator, user, expired):
    key = bittensor_wallet.Keypair.create_from_uri(user)
    client = v1.ComputeHordeClient(hotkey=key, compute_horde_validator_hotkey=validator, facilitator_url=url)
    seen = []
    attempts = []
    job = await client.create_job(
        spec(
            "good",
            args=["echo", "zażółć"],
            env={"B": "2", "A": "1"},
            artifacts_dir="/artifacts",
            input_volumes={
                "/volume/in": v1.InlineInputVolume.from_file_contents("a.txt", b"a"),
                "/volume/model": v1.HuggingfaceInputVolume(repo_id="o/m", allow_patterns=["*.json"]),
                "/volume/f.bin": v1.HTTPInputVolume(url="https://example.com/f?x=1&y=2"),
            },
            output_volumes={
                "/output/o.txt": v1.HTTPOutputVolume(http_method="PUT", url="https://example.com/o"),
                "/output/p.txt": v1.HTTPOutputVolume(http_method="POST", url="https://example.com/p", form_fields={"k": "v"}),
            },
        )
    )
    # The next request carries an expired token, so the SDK has to log in again.
    client._token = expired
    await job.wait(timeout=30, status_callback=lambda _, entry: seen.append(str(entry.status)))
    bad = await client.create_job(spec("bad"))
    await bad.wait(timeout=30)
    trusted = await client.create_job(spec("good", args=["echo", "x"]), on_trusted_miner=True)
    await trusted.wait(timeout=30)
    until_complete = await client.run_until_complete(
        spec("good", args=["echo", "at once"]), job_attempt_callback=lambda attempt: attempts.append(attempt.uuid), timeout=30
    )
    tried = await client.run_until_complete(
        spec("bad"), job_attempt_callback=lambda attempt: attempts.append(attempt.uuid), timeout=60, max_attempts=2
    )
    # A public key that cannot be PEM is enough for the facilitator; the streaming server's answer is what counts here.
    stream = await client.create_job(spec("stream", streaming=True))
    await stream.wait(timeout=30)
    refused = []
    for job_uuid, trusted_uuid in [(job.uuid, bad.uuid), (job.uuid, None), (job.uuid, trusted.uuid), (job.uuid, trusted.uuid)]:
        try:
            answer = await client.report_cheated_job(job_uuid, trusted_uuid or "0", details={"b": 1, "a": "ż"})
            refused.append(json.loads(answer)["validator"])
        except v1.ComputeHordeNotFoundError:
            refused.append("not found")
        except v1.ComputeHordeError as error:
            refused.append(str(error))
    try:
        await client.get_job("00000000-0000-0000-0000-000000000000")
        missing = "found"
    except v1.ComputeHordeNotFoundError:
        missing = "not found"
    stranger = v1.ComputeHordeClient(
        hotkey=bittensor_wallet.Keypair.create_from_uri("//Stranger"),
        compute_horde_validator_hotkey=validator,
        facilitator_url=url,
    )
    try:
        await stranger.get_jobs()
        refusal = "let in"
    except v1.ComputeHordeError as error:
        refusal = str(error)
    return {
        "seen": seen,
        "stdout": job.result.stdout,
        "artifacts": {path: list(data) for path, data in job.result.artifacts.items()},
        "uploads": {path: result.body for path, result in job.result.upload_results.items()},
        "relogged": client._token != expired,
        "bad": [str(bad.status), bad.error.reason, bad.error.message],
        "stream": [stream.streaming_server_address, stream.streaming_server_port, stream.streaming_server_cert],
        "page": [listed.uuid for listed in await client.get_jobs(page=1, page_size=2)],
        "all": [listed.uuid async for listed in client.iter_jobs()],
        "uuids": [job.uuid, bad.uuid, trusted.uuid, *attempts, stream.uuid],
        "until_complete": [str(until_complete.status), until_complete.result.stdout, str(tried.status), len(attempts)],
        "cheated": refused,
        "missing": missing,
        "refusal": refusal,
    }


print(json.dumps(asyncio.run(main(*sys.argv[1:]))))

"""The client of the facilitator link as one writes it in Python: asyncio, `websockets`, `bittensor-wallet`.

It does what the stub validator of phalanx must: authenticates, recognises repeated jobs, checks each signature, reports
six statuses, keeps each until its answer has come, and sends heartbeats. It does not reconnect.
"""

import argparse
import asyncio
import base64
import hashlib
import json
from collections import deque

from bittensor_wallet import Keypair
from websockets.asyncio.client import connect

STEPS = ["received", "accepted", "executor_ready", "volumes_ready", "execution_done"]
HEARTBEAT_EVERY = 60
SIGNED = [
    "executor_class",
    "docker_image",
    "args",
    "env",
    "use_gpu",
    "artifacts_dir",
    "on_trusted_miner",
    "download_time_limit",
    "execution_time_limit",
    "upload_time_limit",
    "streaming_start_time_limit",
    "streaming_details",
]


def parts(whole, kind, several, name):
    if whole is None:
        return []
    return whole[name] if whole[kind] == several else [whole]


def signed_hash(job):
    fields = {name: job[name] for name in SIGNED}
    fields["artifacts_dir"] = job["artifacts_dir"] or ""
    fields["volumes"] = parts(job["volume"], "volume_type", "multi_volume", "volumes")
    fields["uploads"] = parts(job["output_upload"], "output_upload_type", "multi_upload", "uploads")
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    time = job["signature"]["timestamp_ns"].to_bytes(8, "big")
    return hashlib.blake2b(time + json.dumps(text).encode()).digest()


def wrong(job, trusted):
    """Why the signature does not count, if it does not."""
    signature = job["signature"]
    if signature is None:
        return "the job is not signed"
    key = trusted.get(signature["signatory"])
    if key is None:
        return "the signatory may not sign jobs"
    if not key.verify(signed_hash(job), base64.b64decode(signature["signature"])):
        return "the signature is not over this job"
    return None


def metadata(**details):
    return {
        "miner_response": None,
        "job_rejection_details": None,
        "job_failure_details": None,
        "horde_failure_details": None,
        "streaming_details": None,
    } | details


class Client:
    def __init__(self, socket, trusted, verify):
        self.socket = socket
        self.trusted = trusted
        self.verify = verify
        self.seen = set()
        self.unanswered = deque()

    async def report(self, uuid, status, details=None):
        update = {"message_type": "V0JobStatusUpdate", "uuid": uuid, "status": status, "metadata": details}
        self.unanswered.append(update)
        await self.socket.send(json.dumps(update))

    async def job(self, job):
        uuid = job["uuid"]
        if uuid in self.seen:
            return
        self.seen.add(uuid)
        why = wrong(job, self.trusted) if self.verify else None
        if why is not None:
            rejection = {"rejected_by": "validator", "reason": "invalid_signature", "message": why, "context": None}
            await self.report(uuid, "rejected", metadata(job_rejection_details=rejection))
            return
        for status in STEPS:
            await self.report(uuid, status)
        result = {"docker_process_stderr": "", "docker_process_stdout": "", "artifacts": None, "upload_results": None}
        await self.report(uuid, "completed", metadata(miner_response=result))

    async def heartbeats(self):
        while True:
            await self.socket.send(json.dumps({"message_type": "V0Heartbeat"}))
            await asyncio.sleep(HEARTBEAT_EVERY)

    async def run(self):
        async for text in self.socket:
            if text == "PING":
                continue
            message = json.loads(text)
            if message.get("message_type") == "V2JobRequest":
                await self.job(message)
            elif message.get("status") == "success":
                self.unanswered.popleft()
            else:
                raise RuntimeError(f"refused {self.unanswered.popleft()}: {text}")


async def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facilitator", required=True)
    parser.add_argument("--key", required=True, help="the validator's seed, 64 hex digits")
    parser.add_argument("--trusted-signer", action="append", default=[])
    parser.add_argument("--no-verify", action="store_true")
    args = parser.parse_args()
    key = Keypair.create_from_seed(args.key)
    trusted = {address: Keypair(ss58_address=address) for address in args.trusted_signer}
    async with connect(args.facilitator) as socket:
        hello = {
            "message_type": "V0AuthenticationRequest",
            "public_key": key.public_key.hex(),
            "signature": "0x" + key.sign(key.public_key).hex(),
        }
        await socket.send(json.dumps(hello))
        answer = json.loads(await socket.recv())
        if answer["status"] != "success":
            raise RuntimeError(f"the authentication was refused: {answer}")
        client = Client(socket, trusted, verify=not args.no_verify)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(client.heartbeats())
            tasks.create_task(client.run())


asyncio.run(main())

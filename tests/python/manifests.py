"""Asks miners for their manifests through the official `OrganicMinerClient`, all at once, as the Python validator does;
prints wall time and CPU time in seconds and the number of each outcome, as one JSON object.

Arguments: the validator's key URI, the seconds that each miner has, a file with the SS58 address, host and port of a
miner in each line. The time of the imports does not count.
"""

import asyncio
import collections
import json
import logging
import sys
import time

import django
from django.conf import settings

settings.configure(
    USE_TZ=True,
    INSTALLED_APPS=["compute_horde.receipts"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()

from bittensor import Keypair  # noqa: E402
from compute_horde.miner_client import organic  # noqa: E402

logging.disable(logging.CRITICAL)
KEY, SECONDS, FILE = Keypair.create_from_uri(sys.argv[1]), float(sys.argv[2]), sys.argv[3]


async def ask(hotkey, host, port):
    client = organic.OrganicMinerClient(
        miner_hotkey=hotkey, miner_address=host, miner_port=int(port), job_uuid="manifest", my_keypair=KEY
    )
    try:
        async with asyncio.timeout(SECONDS):
            await client.connect()
            await client.miner_manifest
        return "ok"
    except TimeoutError:
        return "timeout"
    except Exception as error:  # It tells its failures apart no further.
        return type(error).__name__
    finally:
        await client.close()


async def main(miners):
    return collections.Counter(await asyncio.gather(*(ask(*miner) for miner in miners)))


with open(FILE) as file:
    miners = [line.split() for line in file]
begun, before = time.monotonic(), time.process_time()
outcomes = asyncio.run(main(miners))
print(json.dumps({"wall": time.monotonic() - begun, "cpu": time.process_time() - before, "outcomes": outcomes}))

"""What the package `compute-horde` imports from `bittensor`, which itself is far too large for tests.

Real key pairs, and the names that only have to be there; what would use them is not called.
"""

import sys
import types

from bittensor_wallet import Keypair

__all__ = ["Keypair", "Metagraph"]


class Metagraph:
    """Only named in annotations."""


class SubstrateRequestException(Exception):
    """Only named in `except`."""


# `from bittensor.core.errors import …` finds its modules here, so that one file is enough.
for name, content in {"core": {}, "core.errors": {"SubstrateRequestException": SubstrateRequestException}}.items():
    module = types.ModuleType(f"bittensor.{name}")
    vars(module).update(content)
    sys.modules[module.__name__] = module

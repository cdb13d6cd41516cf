"""A process that holds an output until its stdin ends: `lease_process URI TTL [steal]`. Says `held` when it does."""

import sys

from batchdet.errors import OutputHeldError
from batchdet.storage.filesystem import open_store
from batchdet.storage.lease import Terms, held
from tests.storage.stores import IMPATIENT


def main(uri: str, ttl_s: str, *flags: str) -> int:
    sys.stdin.readline()
    try:
        with held(open_store(uri, {}, IMPATIENT), "label", Terms(float(ttl_s), "steal" in flags)) as lease:
            sys.stdout.write("held\n")
            sys.stdout.flush()
            sys.stdin.read()
            lease.require()
    except OutputHeldError as error:
        sys.stdout.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""What a run says of itself while it goes on. Knows reports, not how they came about."""

import sys
import time
from typing import Protocol

from batchdet.records import PlanCounts, ShardReport


class Progress(Protocol):
    """Told what happens, in the order it happens."""

    def listing(self, keys: int) -> None:
        """So many keys were listed so far."""

    def planned(self, run_id: str, counts: PlanCounts, images_done: int) -> None:
        """The plan is written or read back; `images_done` of it were committed before."""

    def labellers(self, alive: int, wanted: int) -> None:
        """So many labellers are ready, of so many wanted."""

    def shard_committed(self, report: ShardReport) -> None:
        """One more shard is committed."""

    def log(self, line: str) -> None:
        """Something a person should know."""


class PlainProgress:
    def __init__(self):
        self.t = time.time()
        self.n = 0

    def listing(self, keys):
        pass

    def planned(self, run_id, counts, images_done):
        print("planned", run_id, counts, images_done, file=sys.stderr)

    def labellers(self, alive, wanted):
        pass

    def shard_committed(self, report):
        self.n += report.num_images
        print(f"{time.time() - self.t:.1f}s", self.n, report, file=sys.stderr)

    def log(self, line):
        print(line, file=sys.stderr)

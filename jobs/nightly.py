"""Door for `ray job submit -- python jobs/nightly.py NIGHTLY.yaml [flags]`: takes what `batchdet nightly` takes."""

import sys

from batchdet.cli.main import run

if __name__ == "__main__":
    run(["nightly", *sys.argv[1:]])

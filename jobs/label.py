"""Door for `ray job submit -- python jobs/label.py JOB.yaml [flags]`: takes what `batchdet label` takes."""

import sys

from batchdet.cli.main import run

if __name__ == "__main__":
    run(["label", *sys.argv[1:]])

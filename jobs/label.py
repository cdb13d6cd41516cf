"""Door for `ray job submit -- python jobs/label.py JOB.yaml [flags]`: takes what `batchdet label` takes."""

import sys

from batchdet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))

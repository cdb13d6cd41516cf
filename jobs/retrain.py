"""Door for `ray job submit -- python jobs/retrain.py TRAIN.yaml [flags]`: takes what `batchdet retrain` takes."""

import sys

from batchdet.cli.main import run

if __name__ == "__main__":
    run(["retrain", *sys.argv[1:]])

"""make demo: MiniLM on movie-review sentences by all three methods; prints one table, writes runs/demo/report.html.

Two epochs on a part of the training sentences, so that it ends within minutes on 2 cores (--examples 0 takes all of
them). Run it again and what is finished is not done twice.
"""

import argparse
import sys
import time
from pathlib import Path

from ftjax.cli import main
from ftjax.demo import reviews
from ftjax.launch import keep_programs, with_huge_pages

if __name__ == "__main__":
    with_huge_pages()
    keep_programs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1152, help="training sentences, 0 for all 10,191")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--output", default="runs/demo")
    options = parser.parse_args()
    started = time.perf_counter()
    files = reviews.write(Path("data/reviews"))
    try:
        main(
            [
                "compare",
                *("--model", str(reviews.model_dir())),
                *("--train-file", str(reviews.sample(files["train"], options.examples))),
                *("--eval-file", str(files["validation"])),
                *("--test-file", str(files["test"])),
                *("--train-parameters", "last:2,head", "--partial-learning-rate", "5e-4"),
                *("--epochs", str(options.epochs), "--batch-size", "16", "--learning-rate", "1e-4"),
                *("--output", options.output),
                "--resume",
            ]
        )
    except SystemExit as end:
        if end.code in (75, 130):
            print("Stopped. make demo goes on from there.", file=sys.stderr)
        raise
    finally:
        print(f"{time.perf_counter() - started:.0f} s in all", file=sys.stderr)

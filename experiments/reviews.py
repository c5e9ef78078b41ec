"""The movie-review sentences of `ftjax.demo.reviews` as files: real data that installs offline (requirements/demo.txt).

python experiments/reviews.py DIR        writes train.csv, validation.csv and test.csv (columns text, label)
"""

import sys
from pathlib import Path

from ftjax.demo.reviews import write

if __name__ == "__main__":
    for path in write(Path(sys.argv[1] if len(sys.argv) > 1 else "data/reviews")).values():
        print(path)

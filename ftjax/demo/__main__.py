"""python -m ftjax.demo DIRECTORY: the demo's review sentences and dialogues as files, to try the commands on."""

import sys
from pathlib import Path

from ftjax.demo import dialogues, reviews
from ftjax.errors import InputError

if __name__ == "__main__":
    try:
        if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
            raise InputError("say where to: python -m ftjax.demo DIRECTORY")
        files = reviews.write(Path(sys.argv[1]) / "reviews")
        files |= {f"dialogue {name}": path for name, path in dialogues.write_data(Path(sys.argv[1]) / "dialogues").items()}
    except InputError as error:
        print(f"ftjax: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for name, path in files.items():
        print(f"{name}: {path}")

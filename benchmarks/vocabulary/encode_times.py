"""Seconds that tokenizers take for the same texts, in a process that did nothing before.

    python -m benchmarks.vocabulary.encode_times FOLDER NAME …

FOLDER has a NAME.json (a tokenizer.json) for each name, `warm.json` and `texts.json` (lists of
texts). In a process that has encoded for minutes one and the same tokenizer was seen to take up to
three times as long as in a fresh one, so a comparison of two needs both to be young.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tokenizers import Tokenizer


def main() -> None:
    folder, *names = sys.argv[1:]
    warm, texts = (json.loads((Path(folder) / f"{n}.json").read_text()) for n in ("warm", "texts"))
    tokenizers = {name: Tokenizer.from_file(f"{folder}/{name}.json") for name in names}
    for tokenizer in tokenizers.values():
        tokenizer.encode_batch_fast(warm, add_special_tokens=False)
    found = {}
    for name, tokenizer in tokenizers.items():
        # What was met before costs a look-up; texts are seldom encoded twice.
        tokenizer.model._clear_cache()
        start_s = time.process_time()
        tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        found[name] = time.process_time() - start_s
    print(json.dumps(found))


if __name__ == "__main__":
    main()

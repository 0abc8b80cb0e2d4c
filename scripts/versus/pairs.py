"""Writes prompts with answers of 20 KB, a row group of them at a time: `pairs.py FILE GIGABYTES`, as lines of JSON or as Parquet by
the file's name. For scripts/bench-run; needs pyarrow."""

import json
import random
import sys

import pyarrow
import pyarrow.parquet

# Long words, that are few tokens, since it is the reading that is to be measured.
WORDS, LETTERS, ROWS = 500, 36, 500


def main() -> None:
    path, gigabytes = sys.argv[1], float(sys.argv[2])
    source = random.Random(17)
    rows = [{"prompt": f"w{n}", "response": " ".join(f"w{source.randrange(511)}{'x' * LETTERS}" for _ in range(WORDS))} for n in range(ROWS)]
    groups = round(gigabytes * 1e9 / sum(len(row["response"]) for row in rows))
    if path.endswith(".jsonl"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        with open(path, "w") as file:
            for _ in range(groups):
                file.write(lines)
        return
    table = pyarrow.Table.from_pylist(rows)
    # Not packed, and no dictionary, so that the file is as large as its rows.
    with pyarrow.parquet.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as file:
        for _ in range(groups):
            file.write_table(table)


main()

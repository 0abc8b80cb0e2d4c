#!/usr/bin/env python3
"""Compares the losses of a quickstart run with those that are checked in: a real model, real data, the whole way from text to
update. Processors round differently, so a batch may be off by 2 %, the held-out loss by 5 %.

  golden_curve.py runs/quickstart            compares
  golden_curve.py runs/quickstart --write    makes this run the golden one
"""

import argparse
import json
import sys
from pathlib import Path

import tessera

GOLDEN = tessera.ROOT / "scripts/goldens/quickstart.json"
LIMITS = {"losses": 0.02, "held_out": 0.05}


def curve(run: Path) -> dict:
    return {
        "losses": tessera.metrics(run, "loss/train/total"),
        "held_out": tessera.metrics(run, "metrics/eval/LanguageCrossEntropy"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    found = curve(arguments.run)
    if arguments.write:
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
        return 0
    golden = json.loads(GOLDEN.read_text())
    holds = True
    for name, limit in LIMITS.items():
        if len(found[name]) != len(golden[name]):
            print(f"FAIL {name}: {len(found[name])} values, expected {len(golden[name])}")
            holds = False
            continue
        worst = max(abs(value / expected - 1) for value, expected in zip(found[name], golden[name]))
        holds &= tessera.report(f"quickstart {name}, worst of {len(golden[name])}", worst, limit)
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())

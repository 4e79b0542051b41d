"""Writes many rows from few, in scattered order: python -m tests.benchmarks.rows ROWS.jsonl COUNT [--changed] > MANY.jsonl

The rows of a JSON Lines file whose first field is "key" are repeated with other keys, all different, until there are
COUNT. With --changed every hundredth has another value.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

STEP = 7_368_787
"""A prime: steps of it, modulo COUNT, meet every number once unless COUNT is a multiple of it."""


def scattered(lines: list[bytes], count: int, *, changed: bool) -> Iterator[bytes]:
    """`count` lines with the keys 0 … count - 1 in scattered order."""
    rests = [line[line.index(b",", 8) :] for line in lines]
    for n, rest in enumerate(islice(cycle(rests), count)):
        key = n * STEP % count
        text = rest.replace(b'":"', b'":"changed ', 1) if changed and key % 100 == 7 else rest
        yield b'{"key":"user/%010d"%s' % (key, text)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--changed", action="store_true")
    arguments = parser.parse_args()
    with arguments.rows.open("rb") as file:
        lines = list(islice(file, 100_000))
    sys.stdout.buffer.writelines(scattered(lines, arguments.count, changed=arguments.changed))


if __name__ == "__main__":
    main()

"""Print what several runs of pytest print, as it comes, and behind it one closing line for all of them."""

from __future__ import annotations

import re
import sys
from collections import Counter

CLOSING = re.compile(r"^=* ?\d+ [a-z]+.* in (\d+\.\d+)s( \([\d:]+\))?( =*)?$")
COUNT = re.compile(r"(\d+) (failed|passed|skipped|deselected|xfailed|xpassed|warning|error)s?\b")


def main() -> None:
    """Read stdin to its end."""
    counts, seconds = Counter[str](), 0.0
    for line in sys.stdin:
        print(line, end="", flush=True)
        if found := CLOSING.match(line):
            seconds += float(found[1])
            for number, what in COUNT.findall(line):
                counts[what] += int(number)
    order = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warning", "error")
    if told := ", ".join(f"{counts[what]} {what}" for what in order if counts[what]):
        print(f"{told} in {seconds:.2f}s")


if __name__ == "__main__":
    main()

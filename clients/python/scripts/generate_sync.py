"""Generate the sync client from the asyncio one: `python clients/python/scripts/generate_sync.py [--check]`.

Every module of vecmem_client/_async except the hand-written ones becomes its twin in vecmem_client/_sync by
replacing words; ruff formats the result. With --check nothing is written and a difference exits 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "vecmem_client"
HAND_WRITTEN = {"__init__.py", "background.py", "lanes.py", "transport.py"}
HEADER = "# Generated from _async/{name} by scripts/generate_sync.py: change that one and run the script.\n"

REPLACEMENTS = (
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__aenter__\b", "__enter__"),
    (r"\b__anext__\b", "__next__"),
    (r"\b__aiter__\b", "__iter__"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\b__aexit__\b", "__exit__"),
    (r"\bAsync([A-Z]\w*)\b", r"\1"),
    (r"\bAwaitable\[([^\[\]]+)\]", r"\1"),
    (r"\basync_client\b", "client"),
    (r"\b(_?)a((?:add|from)_texts|create|delete|get_by_ids|nearest)\b", r"\1\2"),
    (r"\ba((?:similarity|max_marginal_relevance)_search|embed_)", r"\1"),
    (r"\basynchronous\b", "synchronous"),
    (r"\b_async\b", "_sync"),
)


def translate(source: str, name: str) -> str:
    """Return the sync twin of an asyncio module."""
    for pattern, replacement in REPLACEMENTS:
        source = re.sub(pattern, replacement, source)
    if left := re.search(r"\b(async|await|asyncio)\b", source):
        raise SystemExit(f"{name}: {left[0]!r} would remain in the sync twin")
    for command in (["check", "--fix", "--unsafe-fixes", "--quiet", "--select", "F401,I,UP028"], ["format", "--quiet"]):
        arguments = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(PACKAGE / "_sync" / name), "-"]
        source = subprocess.run(arguments, input=source, capture_output=True, text=True, check=True).stdout
    return HEADER.format(name=name) + source


def main() -> int:
    """Generate, or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail on a difference instead of writing")
    check = parser.parse_args().check
    sources = {path.name: path for path in (PACKAGE / "_async").glob("*.py") if path.name not in HAND_WRITTEN}
    targets = {path.name: path for path in (PACKAGE / "_sync").glob("*.py") if path.name not in HAND_WRITTEN}
    stale = []
    for name in sorted(sources.keys() | targets.keys()):
        target = PACKAGE / "_sync" / name
        text = translate(sources[name].read_text(), name) if name in sources else None
        if text == (target.read_text() if name in targets else None):
            continue
        stale.append(name)
        if check:
            continue
        if text is None:
            target.unlink()
        else:
            target.write_text(text)
    for name in stale:
        sys.stdout.write(f"{'stale' if check else 'generated'}: vecmem_client/_sync/{name}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())

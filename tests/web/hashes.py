#!/usr/bin/env python3
"""The page allows its own style and script only, by their hashes: this puts them into it, or with --check says whether they fit.

tests/web/hashes.py            after a change of src/server/page.html
tests/web/hashes.py --check    exit code 1 where the browser would refuse the page's own script or style
"""

import base64
import hashlib
import pathlib
import re
import sys

PAGE = pathlib.Path(__file__).resolve().parents[2] / "src/server/page.html"
MAX_BYTES = 64 * 1024


def with_hashes(page: str) -> str:
    for kind in ("style", "script"):
        inside = re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        if len(inside) != 1:
            sys.exit(f"{PAGE}: {len(inside)} elements <{kind}>, not one")
        digest = base64.b64encode(hashlib.sha256(inside[0].encode()).digest()).decode()
        page, n = re.subn(rf"{kind}-src 'sha256-[^']*'", f"{kind}-src 'sha256-{digest}'", page)
        if n != 1:
            sys.exit(f"{PAGE}: the policy names no hash of {kind}")
    return page


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    right = with_hashes(page)
    if len(right.encode()) > MAX_BYTES:
        sys.exit(f"{PAGE}: {len(right.encode())} bytes, more than {MAX_BYTES}")
    if "--check" in sys.argv[1:]:
        if page != right:
            sys.exit(f"{PAGE}: its hashes are not those of its style and script: run tests/web/hashes.py")
    elif page != right:
        PAGE.write_text(right, encoding="utf-8")
        print(f"{PAGE}: hashes put in place")


if __name__ == "__main__":
    main()

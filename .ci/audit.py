"""Known vulnerabilities of what is installed: `python .ci/audit.py`, as `make check` runs it.

Asks OSV (https://osv.dev) by pip-audit. Exits with 1 where one is found. Where the service cannot
be reached nothing is known, which is said loudly and does not fail: a machine without a network can
still check everything else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "Max retries exceeded",
               "Name or service not known", "Temporary failure in name resolution",
               "ServiceError", "ConnectionReset", "ProxyError")  # fmt: skip


def main() -> int:
    program = sys.argv[1] if sys.argv[1:] else str(Path(sys.executable).with_name("pip-audit"))
    # Only this environment, so that what it is based on is not mixed in.
    command = [program, "--local", "--vulnerability-service", "osv", "--format", "json",
               "--progress-spinner", "off", "--timeout", "10"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        out, err = done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        out, err = "", "ReadTimeout: no answer within 300 s"
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError, TypeError):
        lines = [line for line in (err or out).strip().splitlines() if line.strip()] or [
            "no output"
        ]
        if any(mark in err for mark in UNREACHABLE):
            return not_audited(f"the advisory service cannot be reached ({lines[-1][:120]})")
        print("pip-audit failed:", *lines[-15:], sep="\n", file=sys.stderr)
        return 1
    audited = [package for package in packages if "vulns" in package]
    found = [package for package in audited if package["vulns"]]
    for package in found:
        for each in package["vulns"]:
            fixed = ", ".join(each.get("fix_versions", [])) or "no version"
            name = f"{package['name']} {package['version']}"
            print(f"{name}: {each['id']}, mended in {fixed}", file=sys.stderr)
    if found:
        return 1
    if not audited:
        return not_audited("the service knows none of the packages")
    print(f"{len(audited)} packages without known vulnerabilities, {len(packages)} installed")
    return 0


def not_audited(reason: str) -> int:
    print(f"DEPENDENCIES NOT AUDITED: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

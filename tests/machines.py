"""The numerical tests as on other machines: other instructions, other kernels of MKL, other numbers of threads.

``python tests/machines.py [SETTING ...] [-- pytest's options]`` prints one line a setting; it ends with 1 if any fails.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = [
    "ATEN_CPU_CAPABILITY=default",
    "ATEN_CPU_CAPABILITY=avx2",
    "MKL_CBWR=COMPATIBLE",
    "MKL_CBWR=SSE4_2",
    "OMP_NUM_THREADS=1",
    "OMP_NUM_THREADS=2",
    "OMP_NUM_THREADS=4",
]
# Everything but the programs, which are tested for what they print and write.
NOT_NUMERICAL = ("examples", "benchmarks", "test_architecture.py", "test_documentation.py", "test_snippets.py")
NUMERICAL = [f"--ignore=tests/{each}" for each in NOT_NUMERICAL]
PYTEST = ["-n", "2", "--tb=short", "--show-capture=no"]
LIMIT = 3600  # seconds for one setting, beyond which it hangs
FOLDER = Path(__file__).parent


def environment(setting: str, cache: str) -> dict[str, str]:
    """This process's own, without what another setting sets, and with a cache of its own for compiled graphs.

    Those that torch has compiled for one processor it takes from its cache for another, where they are wrong. Threads
    that wait leave the processor to the others.
    """
    names = {each.partition("=")[0] for each in SETTINGS}
    own = {name: value for name, value in os.environ.items() if name not in names}
    name, _, value = setting.partition("=")
    return own | {"OMP_WAIT_POLICY": "passive", "TORCHINDUCTOR_CACHE_DIR": cache, name: value}


def run(setting: str, options: list[str]) -> bool:
    """Whether the tests pass; a dot a second until it is known, then their summary, or all they print if they fail."""
    command = [sys.executable, "-m", "pytest", *PYTEST, *NUMERICAL, *(options or [str(FOLDER)])]
    start = time.monotonic()
    print(f"{setting:28s}", end=" ", flush=True)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryDirectory() as cache:
        process = subprocess.Popen(
            command, cwd=FOLDER.parent, env=environment(setting, cache), stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None and time.monotonic() - start < LIMIT:
            print(".", end="", flush=True)
            time.sleep(1)
        process.kill()
        passed = process.wait() == 0
        output.seek(0)
        lines = output.read().splitlines()
    counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", lines[-1] if lines else "")
    summary = ", ".join(counts) or f"no test ran to its end: status {process.returncode}"
    print(f" {summary}, {time.monotonic() - start:.0f} s", flush=True)
    if not passed:
        print("\n".join(lines), flush=True)
    return passed


def main(arguments: list[str]) -> int:
    if "--" in arguments:
        split = arguments.index("--")
        arguments, options = arguments[:split], arguments[split + 1 :]
    else:
        options = []
    results = [run(setting, options) for setting in arguments or SETTINGS]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

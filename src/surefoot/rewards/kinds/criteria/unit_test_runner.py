"""Limit this process, run code and tests that stdin holds, and say the word if they came to their end.

`unit_tests.py` starts it as a script, isolated (`python -I`); it imports nothing of surefoot.
"""

import json
import os
import resource
import sys


def main() -> None:
    job = json.load(sys.stdin.buffer)
    seconds, memory = max(1, round(job["seconds"])), job["memory_mib"] * 2**20
    said = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nowhere, handle)
    for limit, value in (
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_AS", memory),
        ("RLIMIT_FSIZE", 2**20),
        ("RLIMIT_NPROC", 0),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
    ):
        which = getattr(resource, limit, None)
        if which is not None:
            most = resource.getrlimit(which)[1]
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(which, (value, value))
    namespace = {"__name__": "solution"}
    try:
        exec(compile(job["code"], "solution.py", "exec"), namespace)
        exec(compile(job["tests"], "tests.py", "exec"), namespace)
    except BaseException:
        os._exit(1)
    os.write(said, job["word"].encode())
    os._exit(0)


if __name__ == "__main__":
    main()

"""Serve SmolLM2 as a judge on this machine, offline, by llama.cpp's server, which keeps to JSON schemas.

    pip install xllamacpp
    python examples/smollm2/judge_server.py --port 8033

Any other GGUF file is served by `--model FILE.gguf`.
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp
from prepare import gguf_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a GGUF file; the package's if not given")
    parser.add_argument("--port", type=int, default=8033)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.model or str(gguf_file())
    params.hostnames, params.port = ["127.0.0.1"], options.port
    params.n_ctx, params.n_parallel = 16384, 4  # tokens in all, replies at a time
    params.cpuparams.n_threads = options.threads
    server = xllamacpp.Server(params)
    print(f"listening at {server.listening_address}/v1", flush=True)  # noqa: T201
    signal.pause()


if __name__ == "__main__":
    main()

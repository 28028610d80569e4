"""A saved source behind LitServe, in batches of up to 64, for benchmarks/server.py.

python benchmarks/server_litserve.py SOURCE PORT
"""

from __future__ import annotations

import sys
from typing import Any

import litserve

from surefoot.maths.objectives import weights
from surefoot.rewards.registry import load_source


class Api(litserve.LitAPI):
    """Answers a request of our `/v1/rewards` for one completion with its mean, variance and weight."""

    def setup(self, device: str) -> None:
        self.source = load_source(sys.argv[1], "cpu")

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # FastAPI would read a type as a query's
        return request["prompt"], request["completions"][0]

    def batch(self, inputs: Any) -> Any:
        return list(inputs)

    def predict(self, inputs: Any) -> Any:
        estimate = self.source.estimate(self.source.score(*map(list, zip(*inputs, strict=True))))
        assert self.source.calibration is not None
        weight = weights(estimate.variance, self.source.calibration.reference_variance)
        return list(zip(estimate.mean.tolist(), estimate.variance.tolist(), weight.tolist(), strict=True))

    def unbatch(self, output: Any) -> Any:
        return output

    def encode_response(self, output: Any) -> Any:
        return {name: [value] for name, value in zip(("mean", "variance", "weight"), output, strict=True)}


if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.002, api_path="/v1/rewards")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="warning")

"""The paper that the trainers' model cards cite."""

from __future__ import annotations

import textwrap

__all__ = ["PAPER"]

PAPER = {
    "title": "Towards Reliable, Uncertainty-Aware Alignment",
    "id": "2507.15906",
    "citation": textwrap.dedent("""\
        @article{gopalan2025towards,
            title   = {Towards Reliable, Uncertainty-Aware Alignment},
            author  = {Gopalan, Aditya and Banerjee, Debangshu and Saha, Aadirupa},
            year    = 2025,
            journal = {arXiv preprint arXiv:2507.15906}
        }"""),
}

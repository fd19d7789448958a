"""What docs/gan.md claims of the optimal discriminator, by running its text."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[1] / "docs" / "gan.md"


def test_the_optimal_discriminator_has_the_value_that_the_page_says():
    section = PAGE.read_text("utf-8").split("\n## The optimal discriminator\n")[1].split("\n## ")[0]
    (text,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert text.count("assert ") == 2
    with torch.random.fork_rng():
        exec(compile(text, str(PAGE), "exec"), found := {})
    assert f"# {found['jsd']:.4f} nats" in text and f"# {found['best']:.4f}" in text

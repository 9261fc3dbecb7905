"""The README.md of an exported folder."""

from __future__ import annotations

from collections.abc import Mapping

from zaya_jax.config import Model
from zaya_jax.hf.names import NATIVE
from zaya_jax.model.functional import active_parameter_count, parameter_count

_LOAD = {
    True: """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
```

transformers 5.23 or newer has the `zaya` model; no remote code is needed.""",
    False: """The tensors have the names of the legacy ZAYA1 layout, which transformers does not
read; Zyphra's own forks of vLLM and transformers do.""",
}


def model_card(model: Model, layout: str, dtype: str, facts: Mapping[str, object]) -> str:
    """Markdown: shape, counts, how to load it, and what is known of its training.

    Args:
      facts: extra lines, label to value.
    """
    a, r = model.attention, model.router
    rows = {
        "parameters": f"{parameter_count(model):,}",
        "active for each token": f"{active_parameter_count(model):,}",
        "layers": model.num_layers,
        "hidden size": model.hidden_size,
        "attention": f"CCA, {a.heads} query and {a.kv_heads} key-value heads of {a.head_dim}",
        "experts": f"{r.experts} of width {model.expert_width}, one for each token",
        "vocabulary": f"{model.vocab_size:,}",
        "context": f"{model.context_length:,} tokens",
        "weights": f"{dtype}, {layout} layout",
        **facts,
    }
    table = "\n".join(f"| {label} | {value} |" for label, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- zaya
- mixture-of-experts
- jax
---

# A ZAYA1 model

A mixture-of-experts language model of the ZAYA1 architecture (arXiv 2605.05365), exported from JAX.

| | |
|---|---|
{table}

## Load it

{_LOAD[layout == NATIVE]}
"""

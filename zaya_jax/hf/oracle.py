"""The other side of `verify`: transformers' Zaya on the CPU. Needs torch and transformers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.hf.exporter import convert_folder
from zaya_jax.hf.folder import Folder, open_folder
from zaya_jax.hf.names import JAX, NATIVE, places


@contextlib.contextmanager
def native_folder(folder: Folder) -> Iterator[Folder]:
    """The folder itself if transformers can read it, else a temporary native copy of it."""
    if folder.layout == NATIVE and not folder.packed:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="zaya-verify-") as scratch:
        yield open_folder(convert_folder(folder, Path(scratch) / NATIVE, layout=NATIVE))


class Oracle:
    """A native folder run by transformers in float32, with its eager experts.

    Raises:
      UserError: torch or a transformers that knows `zaya` is not installed.
    """

    def __init__(self, folder: Folder):
        try:
            import torch
            from transformers.models.zaya.modeling_zaya import ZayaForCausalLM
        except ImportError as error:
            raise UserError(
                f"verify compares with transformers, and {error.name} is not installed here: "
                "pip install torch transformers==5.23.0"
            ) from error
        self._torch = torch
        self.model = ZayaForCausalLM.from_pretrained(
            folder.path,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            local_files_only=True,
        ).eval()
        # from_pretrained resets the skip class's bias to -1, whatever the file says.
        for name, place in places(folder.model, JAX).items():
            if place.address.declaration.group == "balance":
                values = folder.part(name, 0).astype(np.float32)
                self.model.get_buffer(name).copy_(torch.from_numpy(values))

    def logits(self, ids: Sequence[int], attention: str = "eager") -> np.ndarray:
        """[S] ids -> [S, V] float64, computed in the model's dtype.

        Args:
          attention: transformers' implementation, `eager` or `sdpa`.
        """
        self.model.set_attn_implementation(attention)
        with self._torch.no_grad():
            tokens = self._torch.tensor([list(ids)])
            return self.model(tokens, use_cache=False).logits[0].double().numpy()

    def greedy(self, ids: Sequence[int], n: int) -> tuple[list[int], np.ndarray]:
        """The `n` most likely next tokens by `generate`, and their logits [n, V] float64."""
        from transformers import GenerationConfig

        self.model.set_attn_implementation("eager")
        settings = GenerationConfig(
            max_new_tokens=n,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        # The end of a text is no reason to stop comparing.
        self.model.generation_config.eos_token_id = None
        tokens = self._torch.tensor([list(ids)])
        mask = self._torch.ones_like(tokens)
        with self._torch.no_grad():
            out = self.model.generate(tokens, attention_mask=mask, generation_config=settings)
        logits = self._torch.cat(out.logits).double().numpy()
        return out.sequences[0, len(ids) :].tolist(), logits

    def widen(self) -> None:
        """From here on in float64, which takes twice the memory."""
        self.model.double()

"""Opens whatever `--model=` names: a run directory, a checkpoint in it, or a Hugging Face folder.

Every verb that needs weights calls `load`, so all accept the same things and fail in the same
words.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import ml_collections

from zaya_jax import config as config_lib
from zaya_jax.config import Experiment, Model, Ops
from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError
from zaya_jax.model import forms
from zaya_jax.model.functional import Declaration, declarations

Values = dict[str, jax.Array]
Store = Callable[[Declaration, Any], Any]
"""How a parameter is kept, given its declaration and what was read of it."""

CONFIG, CHECKPOINTS, TOKENIZER = "config.json", "checkpoints", "tokenizer"
"""What a run directory holds; see DESIGN's conventions."""
END_OF_TURN = "<|im_end|>"
"""The token that closes a turn of ChatML, where the vocabulary has it."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where weights came from.

    kind: `run` (a run directory or a checkpoint in it) or `folder` (Hugging Face or imported).
    path: the run directory, or the folder.
    step: of the checkpoint, where one was named; None means the newest.
    """

    kind: Literal["run", "folder"]
    path: Path
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A network with its values.

    model: its shape and how it computes.
    params, biases: flat, by dotted path (see `zaya_jax.model.functional`). For inference, some of
      the params may be quantized (see `zaya_jax.infer.quantize`).
    tokenizer: None if there was none; `require_tokenizer` says so in words.
    opens_with_bos: whether text begins with the tokenizer's begin-of-sequence token.
    """

    model: Model
    params: Values
    biases: Values
    tokenizer: Tokenizer | None
    source: Source
    opens_with_bos: bool = False

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
          UserError: there is none.
        """
        if self.tokenizer is None:
            place = self.source.path
            place = place / TOKENIZER if self.source.kind == "run" else place
            raise UserError(
                f"--model={self.source.path}: no tokenizer: text needs a tokenizer.json in {place}"
            )
        return self.tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text: the model's and the tokenizer's end-of-sequence, and the end of a
        turn, which is all that a model of chats writes in most vocabularies."""
        ids: set[int | None] = {self.model.eos_id}
        if self.tokenizer is not None:
            ids |= {self.tokenizer.eos_id, self.tokenizer.id_of(END_OF_TURN)}
        return frozenset(i for i in ids if i is not None)

    @property
    def start_id(self) -> int:
        """The token that an empty prompt stands for: begin-of-sequence, else end-of-sequence."""
        if self.tokenizer is None:
            return self.model.bos_id
        bos = self.tokenizer.bos_id
        return self.tokenizer.eos_id if bos is None else bos


def load(
    path: str | Path,
    *,
    layers: str = "unroll",
    param_dtype: str | None = None,
    activation_dtype: str | None = None,
    ops: Ops | None = None,
    store: Store | None = None,
) -> Loaded:
    """Reads weights, model section and tokenizer.

    Args:
      path: a run directory, `checkpoints/STEP` in one, a Hugging Face folder (either layout), or
        a folder that `launch.py import` wrote.
      layers: the form of the layers to return, `unroll` or `scan`.
      param_dtype: to which parameters are cast; None keeps them as stored. Balancing biases are
        never cast: they are compared with float32 probabilities.
      activation_dtype: None keeps the model's.
      ops: implementations of the ops; None keeps the model's.
      store: how each parameter is kept, instead of as it is; layers are then in the form `unroll`.
        Weights that were published quantized come to it as they are, and are refused without it.

    Returns:
      `Loaded`. A run's special ids are those of its tokenizer.

    Raises:
      UserError: no such path; none of these forms; an unreadable tokenizer; what the readers of
        the forms raise.
    """
    path = Path(path).expanduser()
    source = locate(path)
    if source.kind == "run":
        model, params, biases, tokenizer_dir = _open_run(source, path)
    else:
        model, params, biases, tokenizer_dir = _open_folder(source.path, param_dtype, store)
    eos_id = model.eos_id if source.kind == "folder" else None  # a run goes by its tokenizer
    tokenizer = _open_tokenizer(tokenizer_dir, eos_id)
    if source.kind == "run" and tokenizer is not None:
        model = _with_ids_of(tokenizer, model)

    if param_dtype is not None and source.kind == "run":  # a folder's are cast as they are read
        for name, value in params.items():  # each replaces its source: no second set is ever held
            params[name] = _cast(value, param_dtype)
    model, params, biases = forms.convert(model, params, biases, layers, consume=True)
    if store is not None and source.kind == "run":
        for name, declaration in declarations(model).items():
            params[name] = store(declaration, params.pop(name))
    model = dataclasses.replace(
        model,
        param_dtype=param_dtype or model.param_dtype,
        activation_dtype=activation_dtype or model.activation_dtype,
        ops=ops or model.ops,
    )
    opens_with_bos = tokenizer is not None and _opens_with_bos(tokenizer_dir)
    return Loaded(model, params, biases, tokenizer, source, opens_with_bos)


def experiment(config: ml_collections.ConfigDict) -> Experiment:
    """The frozen form of a config whose model section may be open (see `config.open_model`).

    What it leaves open is read from `train.init_from`: its config alone, no weights.

    Raises:
      UserError: there are open fields, but no `train.init_from` or nothing that `locate` knows;
        mistakes, as `config.from_dict` says.
    """
    data = config.to_dict()
    is_open = list(config_lib.left_open(data.get("model", {})))
    if is_open:
        init_from = data.get("train", {}).get("init_from")
        if init_from is None:
            raise UserError(
                f"the config leaves its model open ({is_open[0]} and {len(is_open) - 1} more "
                "fields): it is read from the weights to start from, so set train.init_from"
            )
        data["model"] = config_lib.fill(data["model"], model_of(init_from))
    return config_lib.from_dict(data)


def tokenizer_for(experiment: Experiment) -> str | None:
    """The tokenizer that a config names, be it by the weights it starts from; None if neither.

    The weights stay where they are.

    Raises:
      UserError: `train.init_from` has none, or as `locate` and `hf.open_folder` say.
    """
    init_from = experiment.train.init_from
    if experiment.data.tokenizer is not None or init_from is None:
        return experiment.data.tokenizer
    source = locate(Path(init_from).expanduser())
    folder: Path | None = source.path / TOKENIZER
    if source.kind == "folder":
        folder = importlib.import_module("zaya_jax.hf").open_folder(source.path).tokenizer_dir
    if folder is None or not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"train.init_from = {init_from}: no tokenizer.json there; name one by data.tokenizer"
        )
    return str(folder)


def model_of(path: str | Path) -> Model:
    """The model section of what `load` reads, without its weights; special ids of the tokenizer.

    Raises:
      UserError: as `load`.
    """
    source = locate(Path(path).expanduser())
    if source.kind == "folder":
        folder = importlib.import_module("zaya_jax.hf").open_folder(source.path)
        model, tokenizer_dir = folder.model, folder.tokenizer_dir
    else:
        workdir = importlib.import_module("zaya_jax.train.workdir")
        model, tokenizer_dir = workdir.read_config(source.path).model, source.path / TOKENIZER
    tokenizer = _open_tokenizer(tokenizer_dir, None)
    return model if tokenizer is None else _with_ids_of(tokenizer, model)


def locate(path: Path) -> Source:
    """Which of the forms `path` is.

    Raises:
      UserError: it does not exist, or is none of them; says what was looked for.
    """
    if not path.exists():
        raise UserError(
            f"--model={path}: no such folder; a model of the Hugging Face hub is fetched with "
            "`hf download NAME --local-dir=FOLDER`"
        )
    if not path.is_dir():
        raise UserError(f"--model={path}: a file; expected the folder that holds it")
    if _is_run(path):
        return Source("run", path)
    if path.name == CHECKPOINTS and _is_run(path.parent):
        return Source("run", path.parent)
    if path.parent.name == CHECKPOINTS and path.name.isdigit() and _is_run(path.parent.parent):
        return Source("run", path.parent.parent, int(path.name))
    weights = any(path.glob("*.safetensors")) or any(path.glob("*.safetensors.index.json"))
    if weights or any(path.glob("*.bin")):  # the reader says why it opens no pickles
        return Source("folder", path)
    raise UserError(
        f"--model={path}: neither a run directory ({CONFIG} and {CHECKPOINTS}/), nor a checkpoint "
        f"(RUN/{CHECKPOINTS}/STEP), nor a Hugging Face or imported folder ({CONFIG} and "
        f"*.safetensors); it holds {_listing(path)}"
    )


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and (path / CHECKPOINTS).is_dir()


def _listing(path: Path, most: int = 6) -> str:
    names = sorted(child.name for child in path.iterdir())
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more


# Readers are named, not imported: the rooms that write these forms also use `load`.
def pinned(path: str | Path) -> Path:
    """The same, but a run's newest checkpoint where only the run is named: what is written down
    with its step is read again as it was, however long the run goes on.

    Raises:
      UserError: as `locate`; a run without checkpoints.
    """
    path = Path(path).expanduser()
    source = locate(path)
    if source.kind == "folder" or source.step is not None:
        return path
    checkpoints = source.path / CHECKPOINTS
    names = [one.name for one in checkpoints.iterdir()] if checkpoints.is_dir() else []
    steps = [int(name) for name in names if name.isdigit()]
    if not steps:
        raise UserError(f"--model={path}: no checkpoints yet")
    return checkpoints / str(max(steps))


def _open_run(source: Source, path: Path):
    weights = importlib.import_module("zaya_jax.train.weights")
    experiment, params, biases = weights.restore_weights(source.path, step=source.step)
    return experiment.model, params, biases, source.path / TOKENIZER


def _open_folder(path: Path, param_dtype: str | None, store: Store | None):
    folder = importlib.import_module("zaya_jax.hf").open_folder(path)
    if folder.packed and store is None:
        raise UserError(
            f"{path}: its experts are quantized ({folder.packed_as}): they can be served, not "
            "trained; take the weights they were made from, or write these out by launch.py import"
        )
    params, biases = folder.load(param_dtype, progress="load", store=store)
    return folder.model, params, biases, folder.tokenizer_dir


def _open_tokenizer(folder: Path | None, eos_id: int | None) -> Tokenizer | None:
    if folder is None or not (folder / "tokenizer.json").is_file():
        return None
    try:
        return Tokenizer.load(folder, eos_id=eos_id)
    except ValueError as error:
        raise UserError(str(error)) from None


def _opens_with_bos(folder: Path | None) -> bool:
    """What the tokenizer's settings say; without a word on it, text stands alone."""
    file = None if folder is None else folder / "tokenizer_config.json"
    if file is None or not file.is_file():
        return False
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        return bool(settings.get("add_bos_token", False))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: not a tokenizer's settings: {error}") from None


def _with_ids_of(tokenizer: Tokenizer, model: Model) -> Model:
    """A run's special ids are those it was trained with, whatever its model section says."""
    bos_id = model.bos_id if tokenizer.bos_id is None else tokenizer.bos_id
    ids = {"pad_id": tokenizer.pad_id, "bos_id": bos_id, "eos_id": tokenizer.eos_id}
    if max(ids.values()) >= model.vocab_size:
        raise UserError(
            f"the run's tokenizer has {tokenizer.vocab_size} ids, its model.vocab_size is "
            f"{model.vocab_size}"
        )
    return dataclasses.replace(model, **ids)  # type: ignore[arg-type]


def _cast(value: jax.Array, dtype: str) -> jax.Array:
    return value if value.dtype == jnp.dtype(dtype) else jnp.asarray(value).astype(dtype)

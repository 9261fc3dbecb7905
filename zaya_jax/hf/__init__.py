"""Hugging Face weights in and out; the functions that others need."""

from zaya_jax.hf.exporter import convert_folder, write_folder
from zaya_jax.hf.folder import Folder, is_folder, open_folder
from zaya_jax.hf.importer import import_folder
from zaya_jax.hf.safetensors_io import CheckpointError

__all__ = [
    "CheckpointError",
    "Folder",
    "convert_folder",
    "import_folder",
    "is_folder",
    "open_folder",
    "write_folder",
]

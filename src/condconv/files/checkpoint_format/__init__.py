"""The file of a checkpoint: what it may hold, and how it is written and read. Only this package knows.

It is a safetensors file. Tensors have the names that `layout` makes; everything else is JSON in the file's own header,
of the form that `schema` describes, with digests of the tensors. Another digest is that of the JSON itself. What a file
says is checked before anything is done because of it: the form of the JSON when the file is opened, the digest of
the tensors when they are read. Nothing is ever unpickled, so reading a checkpoint runs none of the writer's code.
"""

from condconv.files.checkpoint_format.file import FORMAT, StoredCheckpoint, is_checkpoint, open_checkpoint, to_bytes
from condconv.files.checkpoint_format.layout import below, join_optimizer, prefixed, split_optimizer
from condconv.files.checkpoint_format.schema import INTERPOLATIONS, MOST_CLASSES, MOST_PIXELS, MOST_TEXT

__all__ = [
    "FORMAT",
    "INTERPOLATIONS",
    "MOST_CLASSES",
    "MOST_PIXELS",
    "MOST_TEXT",
    "StoredCheckpoint",
    "below",
    "is_checkpoint",
    "join_optimizer",
    "open_checkpoint",
    "prefixed",
    "split_optimizer",
    "to_bytes",
]

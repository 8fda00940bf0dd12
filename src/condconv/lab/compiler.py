"""What torch.compile says where it cannot compile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from condconv.errors import TrainingError, first_line


@contextmanager
def compiler_explained() -> Iterator[None]:
    """Say in one sentence that torch.compile failed, for example since there is no C++ compiler.

    Raises:
        TrainingError: In place of such an error; others pass.
    """
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # slow to import
            raise
        raise TrainingError(
            f"`compile` must be possible with torch.compile here, got {first_line(error)}: install what it needs, such "
            "as a C++ compiler, or leave --compile out"
        ) from error

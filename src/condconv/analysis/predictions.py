"""What the unchanged network predicts, which every intervention is compared with."""

from __future__ import annotations

from torch import Tensor, nn

from condconv.errors import UsageError


class Predictions:
    """The unchanged network's predictions, batch by batch: known before, or found by running it.

    Args:
        network: A classifier.
        known: The class of each image of the data, `[N]`; None to run the network.
    """

    def __init__(self, network: nn.Module, known: Tensor | None) -> None:
        self.network = network
        self._known = known
        self._images = 0

    def of(self, images: Tensor) -> Tensor:
        """Return the classes of the next images of the data, `[B]`.

        Raises:
            UsageError: There are more images than known classes.
        """
        start, self._images = self._images, self._images + len(images)
        if self._known is None:
            return predicted_classes(self.network(images))
        if self._images > len(self._known):
            self.check_all_used()
        return self._known[start : self._images].to(images.device)

    def check_all_used(self) -> None:
        """Check that there was one known class for each image so far.

        Raises:
            UsageError: There was not.
        """
        if self._known is not None and len(self._known) != self._images:
            raise UsageError(
                f"`predictions` must have one class for each image, got {len(self._known)} for {self._images} images "
                "or more: record them on the same batches, or give None"
            )


def predicted_classes(logits: Tensor) -> Tensor:
    """Return the classes `[B]` that a classifier's outputs `[B, classes]` say.

    Raises:
        UsageError: They have another shape.
    """
    if logits.dim() != 2:
        raise UsageError(f"`network` must give one number a class, [B, classes], got {list(logits.shape)}")
    return logits.argmax(1)

"""Images in training sequences: what a scenario asks for, whether the model can see, and how it is said."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import BadInput, Unknown
from ...methods import Towers
from ...tape import Tape
from ..job import Job
from ..lines import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """How many images stand in each sequence, their height and width in pixels (None: as the model was made for), what of towers trains."""

    each: int = 0
    size: tuple[int, int] | None = None
    towers: Towers = "trained"

    def show(self, tape: Tape) -> None:
        """Let the forward pass on `tape` see them."""
        tape.images, tape.image_size = self.each, self.size

    def check(self, tape: Tape, job: Job) -> None:
        """Raise BadInput where the model that `tape` has walked cannot see, Unknown where it is not described how it does."""
        if not self.each or tape.picture:
            return
        if any(weight.tower == "vision" for weight in tape.weights):
            raise Unknown(f"images {self.each}: what the vision tower of {job.model.id} makes of images is not estimated by this version")
        raise BadInput(f"images {self.each}: {job.model.id} has no vision tower; leave images out, or name a vision-language model")

    def said(self, tape: Tape) -> list[str]:
        """What is assumed of them, and of what else there is beside text."""
        if tape.picture is None:
            towers = any(weight.tower for weight in tape.weights)
            return ["text only: towers for other modalities are loaded and not run"] if towers else []
        rows, columns = tape.picture.grid
        trained = {"frozen": "is frozen", "projector": "is frozen, its projector trains", "trained": "trains as the method says"}[
            self.towers
        ]
        return [
            f"{counted(self.each, 'image')} among each sequence's tokens: {rows:,} × {columns:,} patches, "
            f"{tape.picture.tokens:,} tokens each; the tower {trained}"
        ]


NO_IMAGES = Images()


def asked(job: Job) -> Images:
    """The scenario's images. Raises BadInput where a size is given and no image, Unknown for engines that are not judged with images."""
    s = job.scenario
    if s.image_size and not s.images:
        raise BadInput("image_size: there are no images; say how many stand in a sequence, such as images 1")
    if s.images and job.engine != "transformers":
        raise Unknown(f"images with engine {job.engine!r}: estimated for engine 'transformers' only; leave one of them out")
    return Images(each=s.images or 0, size=s.image_size, towers=s.tower or "trained")

"""What a classifier of images is put to: test images, corrupted ones, ones of no class that it knows."""

from dataclasses import dataclass

from torch import Tensor
from tqdm import tqdm

from examples.baselines.draws import Draws, Pair, outputs
from examples.common import quality
from examples.common.data import hold_out, load
from examples.common.shifts import CORRUPTIONS, STRENGTHS, Pixels, outside


@dataclass(frozen=True)
class Trial:
    """The images of a comparison, all normalised alike; titles are for figures."""

    title: str
    shape: tuple[int, int, int]
    classes: int
    train: Pair
    held_out: Pair
    test: Pair
    corrupted: dict[str, list[Tensor]]  # by kind, of each strength; of the first test images
    outside: Tensor
    outside_title: str

    @classmethod
    def load(cls, name: str, images: int, held_out: int, test: int | None, shifted: int) -> "Trial":
        """The data set ``name``, with at most ``images`` to train on, ``test`` (None: all) and ``shifted`` ones."""
        whole = load(name)
        data, held_x, held_y = hold_out(whole, held_out, images)
        x, y = whole.test_x[:test], whole.test_y[:test]
        pixels = Pixels.of(whole)
        raw = pixels.of_images(x[:shifted])
        corrupted = {
            kind: [pixels.images(corrupt(raw, strength)) for strength in STRENGTHS]
            for kind, corrupt in CORRUPTIONS.items()
        }
        strange, title = outside(name, whole, shifted)
        train = data.train_x, data.train_y
        return cls(whole.title, whole.shape, whole.classes, train, (held_x, held_y), (x, y), corrupted, strange, title)

    def measure(self, draws: Draws, rows: dict[str, float], seed: int) -> dict[str, dict]:
        """All that the rows of a method have, by their temperatures; of every corruption and strength too."""
        shifted = [each for images in self.corrupted.values() for each in images]
        total = len(self.test[1]) + len(self.outside) + sum(map(len, shifted))
        with tqdm(total=total, desc=next(iter(rows)), unit=" images", leave=False, mininterval=0.2) as bar:

            def logits(x: Tensor) -> Tensor:
                return outputs(draws, x, seed=seed, bar=bar)

            own, strange = logits(self.test[0]), logits(self.outside)
            corrupted = {kind: [logits(each) for each in images] for kind, images in self.corrupted.items()}
        return {row: self._described(own, strange, corrupted, t) for row, t in rows.items()}

    def _described(self, own: Tensor, strange: Tensor, corrupted: dict[str, list[Tensor]], temperature: float) -> dict:
        y = self.test[1]
        return {
            "temperature": temperature,
            "test": quality.describe(own / temperature, y),
            "outside": quality.separation(own / temperature, strange / temperature),
            "corrupted": {
                kind: [quality.describe(each / temperature, y[: each.shape[1]]) for each in logits]
                for kind, logits in corrupted.items()
            },
            "reliability": quality.reliability(own / temperature, y),
        }

"""Pairs of sentences to translate, as lists of words: Multi30k, a file of tab-separated pairs, number words."""

import gzip
import html
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Words = list[str]
Pair = tuple[Words, Words]
PAD, UNK, SOS, EOS = range(4)
SPECIAL = ("<pad>", "<unk>", "<sos>", "<eos>")
FILES = ("train", "validation", "test")


@dataclass(frozen=True)
class Corpus:
    """Pairs (source, target), and what a figure calls them."""

    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]
    title: str

    def reversed(self) -> "Corpus":
        """The other direction."""
        parts = ([(target, source) for source, target in part] for part in (self.train, self.validation, self.test))
        return Corpus(*parts, title=f"{self.title}, reversed")


class Vocabulary:
    """The words seen ``min_count`` times or more, most frequent first, after those of ``SPECIAL``."""

    def __init__(self, sentences: Iterable[Words], min_count: int = 1) -> None:
        counts = Counter(word for sentence in sentences for word in sentence)
        seen = sorted((-count, word) for word, count in counts.items() if count >= min_count)
        self.words = [*SPECIAL, *(word for _, word in seen)]
        self.index = {word: i for i, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentence: Words) -> list[int]:
        """Indices of the words and of <eos>; unknown words become <unk>."""
        return [*(self.index.get(word, UNK) for word in sentence), EOS]

    def decode(self, indices: Iterable[int]) -> Words:
        """The words before the first <eos>."""
        words = []
        for i in indices:
            if i == EOS:
                break
            words.append(self.words[i])
        return words


class Encoded:
    """Pairs as indices, in batches of sentences of similar length."""

    def __init__(self, pairs: list[Pair], source: Vocabulary, target: Vocabulary) -> None:
        self.pairs = [(torch.tensor(source.encode(s)), torch.tensor(target.encode(t))) for s, t in pairs]

    def batches(self, size: int, generator: torch.Generator | None = None, pool: int = 20) -> list[list[int]]:
        """Which pairs are in which batch.

        With a generator the pairs come in random order, are sorted by length within pools of so many batches, which
        saves padding, and the batches shuffled; without, all are sorted.
        """
        order = range(len(self.pairs)) if generator is None else _shuffled(len(self.pairs), generator)
        width = len(order) if generator is None else size * pool
        pools = (sorted(order[i : i + width], key=self._lengths) for i in range(0, len(order), width))
        found = [part[i : i + size] for part in pools for i in range(0, len(part), size)]
        return found if generator is None else [found[i] for i in _shuffled(len(found), generator)]

    def batch(self, indices: list[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Sources (batch, source time) and targets (batch, target time), each with its <eos>, padded with ``PAD``."""
        source, target = (
            pad_sequence([self.pairs[i][side] for i in indices], batch_first=True, padding_value=PAD).to(device)
            for side in (0, 1)
        )
        return source, target

    def _lengths(self, i: int) -> tuple[int, int]:
        source, target = self.pairs[i]
        return len(target), len(source)


def load(name: str, pairs: str | None = None, *, seed: int = 0, reverse: bool = False) -> Corpus:
    """``"multi30k"`` (English and French), ``"numbers"`` (English and German words, no files needed), or a file.

    Args:
        name: one of the two; not used where there is a file.
        pairs: path of a text file of pairs in UTF-8, separated by a tab; further columns are ignored.
        seed: of the split of a file and of the numbers.
        reverse: whether to translate from the second language to the first.

    Raises:
        ValueError: unknown name, or the files are not what they should be.
        FileNotFoundError: there are no files, or none that is known.
    """
    if name not in ("multi30k", "numbers"):
        raise ValueError(f"data must be multi30k or numbers, got {name!r}")
    if pairs is not None:
        corpus = tab_separated(Path(pairs), seed)
    else:
        corpus = multi30k() if name == "multi30k" else numbers(seed)
    return corpus.reversed() if reverse else corpus


def multi30k() -> Corpus:
    """English captions and their French translations, lower-cased and tokenised: 29,000, 1,014 and 1,000 pairs.

    Source: Elliott, Frank, Sima'an & Specia, 'Multi30K: multilingual English-German image descriptions' (2016).
    """
    root = os.environ.get("MNVI_DATA")
    folder = Path(root or ".", "multi30k")
    if not root or not folder.is_dir():
        came = f"MNVI_DATA is {root}, which has no folder multi30k" if root else "MNVI_DATA is not set"
        raise FileNotFoundError(
            f"{came}: the hub has no open English-French Multi30k with all three parts; make it a folder that has "
            "multi30k/{train,validation,test}.{en,fr}.gz, the files data/task1/tok/{train,val,test_2016_flickr}"
            ".lc.norm.tok.* of github.com/multi30k/dataset; or give --pairs FILE, tab-separated sentences such as "
            "those of tatoeba.org; or --data numbers"
        )
    return Corpus(*(_aligned(folder, part) for part in FILES), title="Multi30k, English to French")


def tab_separated(path: Path, seed: int) -> Corpus:
    """Pairs of a file, a line each: lower-cased, without accents, 80 % to train on and 20 % to test on by the seed.

    A twentieth of what there is to train on is held out for validation.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--pairs {path} does not exist")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            columns = line.split("\t")
            if len(columns) < 2 or not all(pair := (tokens(columns[0]), tokens(columns[1]))):
                raise ValueError(f"line {number} of {path} must be two sentences and a tab between, got {line!r}")
            found.append(pair)
    return _split(found, seed, path.stem)


def numbers(seed: int) -> Corpus:
    """1 to 999 in English and in German words, whose units come before the tens."""
    return _split([(english(n).split(), german(n).split()) for n in range(1, 1000)], seed, "Numbers, English to German")


def tokens(text: str) -> Words:
    """Words and punctuation marks, in lower case and without accents."""
    letters = unicodedata.normalize("NFD", text.lower())
    return re.findall(r"\w+(?:['’]\w+)*|[^\w\s]", "".join(c for c in letters if unicodedata.category(c) != "Mn"))


UNITS = {
    "en": (
        *("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
        *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
    ),
    "de": (
        *("eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"),
        *("dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"),
    ),
}
TENS = {
    "en": ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
    "de": ("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"),
}


def english(n: int) -> str:
    """1 to 999: three hundred and forty two."""
    if n >= 100:
        rest = f" and {english(n % 100)}" if n % 100 else ""
        return f"{UNITS['en'][n // 100 - 1]} hundred{rest}"
    if n < 20:
        return UNITS["en"][n - 1]
    return TENS["en"][n // 10 - 2] + (f" {english(n % 10)}" if n % 10 else "")


def german(n: int) -> str:
    """1 to 999, with spaces between the words: drei hundert zwei und vierzig."""
    if n >= 100:
        return f"{_one(n // 100)} hundert {german(n % 100) if n % 100 else ''}".strip()
    if n < 20:
        return UNITS["de"][n - 1]
    return (f"{_one(n % 10)} und " if n % 10 else "") + TENS["de"][n // 10 - 2]


def _one(n: int) -> str:
    return "ein" if n == 1 else UNITS["de"][n - 1]


def _aligned(folder: Path, part: str) -> list[Pair]:
    english_lines, french_lines = (list(_lines(folder / f"{part}.{language}.gz")) for language in ("en", "fr"))
    if len(english_lines) != len(french_lines):
        raise ValueError(f"{folder} ({part}) has {len(english_lines)} English and {len(french_lines)} French sentences")
    return list(zip(english_lines, french_lines, strict=True))


def _lines(path: Path) -> Iterator[Words]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield html.unescape(line).split()  # the tokeniser wrote &apos; for an apostrophe


def _split(pairs: list[Pair], seed: int, title: str) -> Corpus:
    if len(pairs) < 10:
        raise ValueError(f"{title} has {len(pairs)} pairs, expected at least 10")
    shuffled = [pairs[i] for i in _shuffled(len(pairs), torch.Generator().manual_seed(seed))]
    test = len(pairs) // 5
    validation = max(1, (len(pairs) - test) // 20)
    return Corpus(shuffled[test + validation :], shuffled[test : test + validation], shuffled[:test], title)


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    return torch.randperm(count, generator=generator).tolist()

"""Data sets, loaders, transforms and tokenizers, all in NumPy: what comes out are batches of arrays.

In: idx files, image folders, text files, arrays, any sequence of samples. Out: batches
for a training step. Called by training loops and the command line.

    train = data.mnist(split="train")
    for images, labels in data.DataLoader(train, batch_size=64, shuffle=True, transform=data.RandomShift(2)):
        ...
"""

from thalweg.data.dataset import ArrayDataset, BatchedDataset, Dataset, Subset, default_collate, split
from thalweg.data.idx import read_idx, write_idx
from thalweg.data.images import ImageFolder, read_image
from thalweg.data.loader import DataLoader
from thalweg.data.sampling import SampleRandom
from thalweg.data.standard import digits, mnist
from thalweg.data.text import WindowLoader, consecutive_windows, read_text, split_tokens
from thalweg.data.tokenizers import (
    ByteTokenizer,
    CharacterTokenizer,
    LibraryTokenizer,
    Tokenizer,
    load_tokenizer,
    tokenizer_from_json,
)
from thalweg.data.transforms import (
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomShift,
    Resize,
    ToFloat,
    Transform,
)

__all__ = [
    "ArrayDataset",
    "BatchedDataset",
    "ByteTokenizer",
    "CharacterTokenizer",
    "Compose",
    "DataLoader",
    "Dataset",
    "ImageFolder",
    "LibraryTokenizer",
    "Normalize",
    "RandomHorizontalFlip",
    "RandomShift",
    "Resize",
    "SampleRandom",
    "Subset",
    "ToFloat",
    "Tokenizer",
    "Transform",
    "WindowLoader",
    "consecutive_windows",
    "default_collate",
    "digits",
    "load_tokenizer",
    "mnist",
    "read_idx",
    "read_image",
    "read_text",
    "split",
    "split_tokens",
    "tokenizer_from_json",
    "write_idx",
]

"""Small vocabularies in the formats of BERT and of CLIP, written by hand."""

import gzip
from pathlib import Path

from transformers import BertTokenizer, CLIPImageProcessorPil, CLIPTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
BERT_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BERT_WORDS = ["cat", "cats", "dog", "snow", "photo", "red", "apple", "and", "in", "the", "of", "##ing", "##s", "##ed"]
BERT_VOCABULARY = [*BERT_SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), *",.!&-", *"猫犬", *BERT_WORDS]

CLIP_MERGES = [
    "t h", "th e</w>", "a n", "an d</w>", "i n</w>", "o f</w>", "c a", "ca t</w>", "d o", "do g</w>", "a p", "p l", "r e",
    "re d</w>", "s n", "o w</w>", "p h", "ph o", "t o</w>", "pho to</w>", "e r</w>", "i n", "in g</w>",
]  # fmt: skip


def save_bert(folder: Path) -> Path:
    """A BERT uncased WordPiece tokenizer."""
    BertTokenizer(vocab={word: row for row, word in enumerate(BERT_VOCABULARY)}, do_lower_case=True).save_pretrained(folder)
    return folder


def byte_letters() -> list[str]:
    """GPT-2's printable letter for every byte, the printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + row) for row in range(len(others))]


def clip_vocabulary() -> list[str]:
    """CLIP's order: letters, letters that end a word, merges, start and end of text."""
    letters = byte_letters()
    merged = [merge.replace(" ", "") for merge in CLIP_MERGES]
    return [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]


def save_clip(folder: Path, image_size: int) -> Path:
    """A CLIP tokenizer and image processor."""
    vocabulary = {word: row for row, word in enumerate(clip_vocabulary())}
    merges = [tuple(merge.split()) for merge in CLIP_MERGES]
    CLIPTokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=image_size).save_pretrained(folder)
    return folder


def save_bpe(path: Path) -> Path:
    """The same merges as open_clip reads them."""
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("\n".join(["#version: 0.2", *CLIP_MERGES]))
    return path

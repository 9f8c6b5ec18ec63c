"""What tests of ``shapley.look`` look at."""

from __future__ import annotations

from copy import deepcopy

import torch

from shapley.hf.bases import haar, rotate
from shapley.hf.load import LanguageModel
from shapley.hf.sites import find_sites
from shapley.look.seen import cut
from tests.tiny import tiny_lm, word_tokenizer

PLAYERS = [(2, 5), (0, 3), (2, 1)]
CORPUS = {
    "sport": ["the player won the race", "a race the player lost", "player player race", "the race"],
    "music": ["the band sold a song", "a song won the band", "song band"],
}


def passages(lm, most_tokens=8):
    return cut(CORPUS, lm.tokenizer, most_tokens)


def in_a_basis():
    """A model whose neurons are turned into directions."""
    model = deepcopy(tiny_lm("llama").model)
    rotate(find_sites(model), torch.stack([haar(24, 0, layer) for layer in range(3)]))
    return LanguageModel(model, word_tokenizer(), "tiny@random", "local")

"""MLP layers of which few units are active at a token, put into a frozen language model and trained (docs/sparse.md).

winners    which units are active: k-winners with duty-cycle boosting, top-k, batch top-k
layer      the layer, and its equal-parameter dense counterpart
insert     into a model: in place of the last block's MLP, or after the last block
kept       trained layers in files
text       documents to train on, and held out
frozen     what enters the last block, computed once
train      the layer only, with checkpoints
usage      how often each unit is active: duty-cycle entropy, dead units
"""

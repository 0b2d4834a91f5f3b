"""Sub-networks of a Hugging Face causal language model, in plain PyTorch.

Read in this order: `families` (which models are known), `anatomy` (where heads, neurons and layers
live in a model), `spec` (which of them are active, and how they are drawn), `slicing` (running the
model on them; `sharded`: where FSDP splits it), `schedule` (how the draw changes over a training),
`importance` and `chooser` (choosing by importance), `flops` (counting what was executed).

This file imports nothing, so that `schedule` and `families` can be asked without loading PyTorch.
"""

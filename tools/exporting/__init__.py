"""What `saccade export` is made of: the network that is exported, one file of formats, the model card."""

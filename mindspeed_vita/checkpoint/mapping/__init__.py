"""Weight names and layouts of every family of checkpoints, as tables of rules over full tensors."""

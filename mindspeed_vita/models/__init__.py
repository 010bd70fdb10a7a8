"""The model: modules over megatron.core that know no process group and no command-line arguments."""

"""The command `vita`. Subcommands are imported only when they are asked for."""

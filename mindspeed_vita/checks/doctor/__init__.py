"""What is installed, what goes together, and what to do where it does not. `vita doctor` prints it."""

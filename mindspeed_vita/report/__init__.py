"""What a run's files say: read while the run goes or later, drawn as one page, and shown in the terminal."""

"""The developer's tool for the ledger: compares it with upstream's sources and makes the signature tables. It is not part of the wheel."""

"""Do two checkpoints compute the same? Both run over one probe, with one layer's weights in memory. For `vita verify --level logits`."""

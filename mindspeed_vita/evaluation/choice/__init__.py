"""Multiple choice and open answers from the files that benchmarks publish. No benchmark is bundled, and nothing is downloaded."""

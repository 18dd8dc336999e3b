"""Does retrieval help on this corpus: arms, losses with intervals, overlap, baselines, the verdict."""

"""From scans on disk to the cohort the experiments read; and a synthetic cohort in the same
layout."""

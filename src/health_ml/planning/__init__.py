"""What a job is, as plain values: the plan, the snapshot, the search space. Loads no SDK and no torch."""

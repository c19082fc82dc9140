"""What a plan asks of every file, and how what lies under results/ stands to it: done, stale or missing."""

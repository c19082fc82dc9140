"""Jobs that several trainings of one checkpoint share, as a plan sees them."""

"""Long runs: a taste of each in the suite, all of it by `make campaign`."""

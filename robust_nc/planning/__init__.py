"""What a suite will cost before it runs: passes, hours, disk, money."""

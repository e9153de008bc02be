"""Where the cells of a suite run: processes of this machine, Ray, torchrun."""

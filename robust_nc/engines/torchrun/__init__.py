"""One model over several GPUs or machines: the processes that torchrun starts train it together."""

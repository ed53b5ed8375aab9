"""What `benchmarks/train.py` is made of: the shapes, a step of either side, its process, the matmul floor."""

"""`python -m robust_nc ...` is `robust-nc ...`, for who starts processes himself: torchrun does.

>>> main.__name__
'main'
"""

from robust_nc.cli.main import main

if __name__ == "__main__":
    main()

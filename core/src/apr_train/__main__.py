"""`python -m apr_train`: the command line, for launchers that start modules (`torchrun -m apr_train …`)."""

from apr_train.cli import main

if __name__ == "__main__":
    main()

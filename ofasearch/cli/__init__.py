"""The command line: argv to a request, one job, and its answer on the screen."""

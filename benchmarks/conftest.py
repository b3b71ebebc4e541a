"""Options of `make bench`."""


def pytest_addoption(parser):
    parser.addoption("--rounds", type=int, default=25, help="rounds of every comparison")
    parser.addoption("--results", default=None, help="folder of the results (default: by machine)")

"""Settings of the commands: dataclasses whose field docstrings are the text of ``--help``."""

"""A thin application on ``simmim_kernels``: models, data, training, pictures.

``simmim pretrain`` and ``simmim reconstruct`` on the command line; from Python the modules
``simmim.model``, ``simmim.encoders``, ``simmim.data``, ``simmim.train``.
"""

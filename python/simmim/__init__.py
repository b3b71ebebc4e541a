"""A thin application on ``simmim_kernels``: models, data, training, measuring, pictures.

``simmim --help`` lists the commands; from Python the modules ``simmim.model``, ``simmim.encoders``,
``simmim.data``, ``simmim.train``, ``simmim.finetune``, ``simmim.probe``.
"""

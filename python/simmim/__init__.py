"""A thin application on ``simmim_kernels``: models, data, training, evaluation, exchange of checkpoints.

``simmim --help`` lists the commands. From Python: ``simmim.models.simmim.SimMIM``,
``simmim.models.mae.MAE``, ``simmim.models.encoders.build_encoder``, ``simmim.data.crops``,
``simmim.training.pretrain.Trainer``, ``simmim.training.finetune``, ``simmim.evaluation.probe``.
"""

"""A thin application on ``simmim_kernels``: models, data, training, evaluation, exchange of checkpoints.

``simmim --help`` lists the commands. From Python: ``simmim.models.simmim.SimMIM``,
``simmim.models.mae.MAE``, ``simmim.models.encoders.build_encoder``, ``simmim.data.crops``,
``simmim.training.pretrain.Trainer``, ``simmim.training.finetune``, ``simmim.evaluation.probe``.
"""

import os

# Between its parallel loops GNU's OpenMP keeps a core busy for 8 ms, half the time that a batch of
# photographs takes to read on two cores; 0.5 ms are more than lie between the loops of one update.
# It is read when PyTorch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

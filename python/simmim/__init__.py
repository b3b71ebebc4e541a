"""A thin application on ``simmim_kernels``: models, data, training, evaluation, exchange of checkpoints.

``simmim --help`` lists the commands. From Python: ``simmim.models.simmim.SimMIM``,
``simmim.models.mae.MAE``, ``simmim.models.encoders.build_encoder``, ``simmim.data.crops``,
``simmim.training.pretrain.Trainer``, ``simmim.training.finetune``, ``simmim.evaluation.probe``.
"""

import os

from simmim.cores import limit_threads

# After each parallel loop GNU's OpenMP keeps its other cores busy for 8 ms by default (measured by
# hand), which are the cores that are to read the next batch. With this it is about 0.5 ms, more than
# lies between the loops of one update. The variable is read when PyTorch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
limit_threads()

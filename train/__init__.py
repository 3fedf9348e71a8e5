"""Trains the CIFAR-10 tutorial network with `jaxopt_port`: `python -m train --help`.

To read it, in this order:

1. `config.py`, `recipes.py`: what a run is. `command_line.py` makes one of a command line.
2. `model.py`: the network. `data/`: its pictures.
3. `training.py`: optimizer, scheduler and average that the flags name. `options.py` reads their KEY=VALUE. `step.py`:
   one step with them, a pure function.
4. `start.py`: where a run starts, and its order of examples. `loop.py`: from there, step by step. `epoch.py`: what an
   epoch came to.
5. `devices.py`: the same over several devices. `processes.py`, `following.py`: over several processes.
6. `run.py`: one run with all that is around the loop. `checks.py`: what it would fail at. `run_folder.py`: its records.
   `checkpoint.py`, `manifest.py`: what it goes on from after it was killed. `torch_checkpoint.py`, `torch_layout.py`:
   the same for a torch script. `stopping.py`, `output.py`: signals, and outputs that break. `cache.py`: what is kept
   for the next run. `progress.py`, `plot.py`, `tensorboard.py`: what is seen of it.
7. `compare/`: the same run in PyTorch beside it.
"""

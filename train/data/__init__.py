"""The pictures: prepared as TFDS does it, decoded once into .npy files, then indexed in RAM.

`read` is all that a run needs. Below it: `prepared.py` finds a dataset's directory or has it made, by the builders of
`builders.py` out of the archives that `archives.py` reads; `decoded.py` keeps the arrays.
"""

from train.data.examples import Data as Data
from train.data.examples import Examples as Examples
from train.data.read import load as load
from train.data.read import read as read

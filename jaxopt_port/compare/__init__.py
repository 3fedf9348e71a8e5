"""Where do a torch run and its JAX port part? `record.py` records the run, `follow` follows it."""

from jaxopt_port.compare.follow import Followed as Followed
from jaxopt_port.compare.follow import assert_follows as assert_follows
from jaxopt_port.compare.follow import follow as follow
from jaxopt_port.compare.stepping import Scheduled as Scheduled
from jaxopt_port.compare.trace import Trace as Trace
from jaxopt_port.compare.trace import TraceError as TraceError
from jaxopt_port.compare.trace import read as read

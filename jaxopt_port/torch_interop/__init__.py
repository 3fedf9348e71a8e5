"""A torch run moves over whole."""

from jaxopt_port.torch_interop import layout as layout

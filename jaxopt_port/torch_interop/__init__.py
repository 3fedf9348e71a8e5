"""A torch run moves over whole."""

from jaxopt_port.torch_interop import layout as layout
from jaxopt_port.torch_interop.files.pt_file import load as load
from jaxopt_port.torch_interop.files.pt_file import save as save
from jaxopt_port.torch_interop.files.pt_types import PtFileError as PtFileError
from jaxopt_port.torch_interop.files.unknown import Unknown as Unknown
from jaxopt_port.torch_interop.random import init as init
from jaxopt_port.torch_interop.random.rng import Generator as Generator
from jaxopt_port.torch_interop.random.rng import data_loader_order as data_loader_order
from jaxopt_port.torch_interop.scheduler_state import load_scheduler as load_scheduler
from jaxopt_port.torch_interop.scheduler_state import scheduler_state_dict as scheduler_state_dict
from jaxopt_port.torch_interop.state_dict import load_optimizer as load_optimizer
from jaxopt_port.torch_interop.state_dict import optimizer_state_dict as optimizer_state_dict
from jaxopt_port.torch_interop.training_state import averaged_model_state_dict as averaged_model_state_dict
from jaxopt_port.torch_interop.training_state import grad_scaler_state_dict as grad_scaler_state_dict
from jaxopt_port.torch_interop.training_state import load_averaged_model as load_averaged_model
from jaxopt_port.torch_interop.training_state import load_grad_scaler as load_grad_scaler

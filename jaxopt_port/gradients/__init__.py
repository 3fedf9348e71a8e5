"""What a training script does to gradients around the optimizer: accumulate, clip, scale."""

from jaxopt_port.gradients.accumulation import accumulate_grad as accumulate_grad
from jaxopt_port.gradients.accumulation import zero_grad as zero_grad
from jaxopt_port.gradients.clipping import clip_grad_norm as clip_grad_norm
from jaxopt_port.gradients.clipping import clip_grad_value as clip_grad_value
from jaxopt_port.gradients.clipping import clip_grads_with_norm as clip_grads_with_norm
from jaxopt_port.gradients.clipping import get_total_norm as get_total_norm
from jaxopt_port.gradients.every_k import EveryKState as EveryKState
from jaxopt_port.gradients.every_k import every_k as every_k
from jaxopt_port.gradients.grad_scaler import GradScaler as GradScaler
from jaxopt_port.gradients.grad_scaler import GradScalerState as GradScalerState

"""A small GPT, nanoGPT's, learns this file: groups, tied weights, accumulation, clipping, warm-up and cosine.

`python gpt.py run.pt` goes on with a torch run: a file with "model", "optimizer" and "scheduler", their state dicts.
"""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxopt_port as optim
from jaxopt_port import lr_scheduler, torch_interop

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, MICRO_BATCHES, STEPS = 2, 2, 32, 32, 8, 2, 30


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        parts = jnp.split(nn.Dense(3 * WIDTH, name="c_attn")(nn.LayerNorm(epsilon=1e-5, name="ln_1")(x)), 3, axis=-1)
        q, k, v = (part.reshape(*x.shape[:2], HEADS, -1) for part in parts)
        h = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape)
        x = x + nn.Dense(WIDTH, name="c_proj")(h)
        h = nn.gelu(nn.Dense(4 * WIDTH, name="c_fc")(nn.LayerNorm(epsilon=1e-5, name="ln_2")(x)))
        return x + nn.Dense(WIDTH, name="mlp_proj")(h)


class GPT(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        wte = nn.Embed(128, WIDTH, embedding_init=nn.initializers.normal(0.02), name="wte")
        x = wte(tokens) + nn.Embed(CONTEXT, WIDTH, name="wpe")(jnp.arange(tokens.shape[1]))
        for layer in range(LAYERS):
            x = Block(name=f"h_{layer}")(x)
        return wte.attend(nn.LayerNorm(epsilon=1e-5, name="ln_f")(x))  # tied: lm_head.weight = wte.weight


model = GPT()
text = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(int)
params = model.init(jax.random.key(0), jnp.zeros((1, CONTEXT), jnp.int32))["params"]
no_decay = optim.ParamGroup(".*/(bias|scale)", weight_decay=0.0)
optimizer = optim.adamw(lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1, param_groups=[no_decay])
warm_up, cosine = lr_scheduler.linear_lr(0.1, total_iters=5), lr_scheduler.cosine_annealing_lr(STEPS, eta_min=3e-4)
scheduler = lr_scheduler.sequential_lr([warm_up, cosine], milestones=[5])
sched, state = scheduler.init(optimizer.init(params))
if len(sys.argv) > 1:
    run = torch_interop.load(sys.argv[1])
    run["model"].pop("lm_head.weight")  # torch's second name of the tied weight
    mapping = torch_interop.layout.infer(run["model"], params)
    params = torch_interop.layout.to_flax(mapping, run["model"], params)
    optimizer, state = torch_interop.load_optimizer(optim.adamw, run["optimizer"], params, mapping)
    sched = torch_interop.load_scheduler(scheduler, run["scheduler"], state, run["optimizer"])


@jax.jit
def train_step(params, state, sched, batches):
    def loss_fn(params, tokens):
        logits = model.apply({"params": params}, tokens[:, :-1])
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean() / MICRO_BATCHES

    losses, (grads, *more) = zip(*(jax.value_and_grad(loss_fn)(params, tokens) for tokens in batches), strict=True)
    for new in more:  # each a further loss.backward()
        grads = optim.accumulate_grad(grads, new)
    grads, _ = optim.clip_grad_norm(grads, 1.0)
    params, state = optimizer.step(grads, state, params)
    sched, state = scheduler.step(sched, state)
    return params, state, sched, sum(losses)


losses = []
for step in range(STEPS):
    starts = np.random.default_rng(step).integers(len(text) - CONTEXT - 1, size=(MICRO_BATCHES, BATCH, 1))
    params, state, sched, loss = train_step(params, state, sched, text[starts + np.arange(CONTEXT + 1)])
    losses.append(float(loss))
print(f"loss {losses[0]:.3f}, after {STEPS} steps {losses[-1]:.3f}, lr {scheduler.get_last_lr(sched)}")

"""Sets up the exchange of tensors between ranks: gloo on the CPU, NCCL and kernels on GPUs."""

import torch
from torch._C._distributed_c10d import Store

from quire.engine.config import EngineConfig
from quire.engine.model.layers.parallel import Exchange
from quire.engine.model.load_config import model_config
from quire.engine.parallel.group_exchange import LOOPBACK, over_gloo


def exchange_of(config: EngineConfig, store: Store, rank: int, address: str = LOOPBACK) -> Exchange:
    """Returns when all ranks have found one another. A node's n-th rank has its n-th GPU, where
    there are any and the CPU is not asked for. address: of the interface to listen on."""
    size = config.tensor_parallel_size
    if config.device == "cpu" or not torch.cuda.is_available():
        return over_gloo(store, rank, size, address)
    from quire.engine.parallel.gpu_exchange import over_nccl

    one_node = config.nnodes == 1
    sums = one_node and config.dtype != "float32"  # the kernel's; see over_nccl
    width = model_config(config).hidden_size if sums else None
    device = torch.device("cuda", rank % config.ranks_per_node)
    return over_nccl(store, rank, size, device, width, one_node=one_node)

"""The list of stages cut over pipeline ranks: DeepSpeed's ``PipelineModule`` over our specs."""

import contextlib
import io
from collections import deque
from collections.abc import Callable, Sequence

from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology
from megatron.core import parallel_state
from torch import Tensor

from megatron_pixel.model.batch import Travelling
from megatron_pixel.model.stages import StageSpec
from megatron_pixel.parallel.engine import start_communication
from megatron_pixel.parallel.mesh import Mesh

LastLoss = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], Tensor]
"""From the outputs of the last stage, and the labels that came with the micro-batch, to a scalar."""


class PipelinedStages(PipelineModule):
    """This rank's stages; parameter names are those of the whole model.

    Between ranks travel the tensors of :class:`Travelling`, whose shapes are the same for all kinds of rows: buffers
    are allocated once. Hidden states are the only floating-point tensor among them, so the only one with a gradient.

    Args:
        specs: the whole list of stages.
        boundaries: of the pipeline ranks in it.
        mesh: where this process stands.
        loss: takes the outputs and the labels that the data iterator gave; called on the last rank.

    Attributes:
        headers: of the micro-batches that come next, on the host, where they are known beforehand.
    """

    def __init__(self, specs: Sequence[StageSpec], boundaries: Sequence[int], mesh: Mesh, loss: LastLoss) -> None:
        self._boundaries = list(boundaries)
        self.headers: deque[Tensor] = deque()
        topology = PipeModelDataParallelTopology(num_pp=mesh.pipe_size, num_mp=mesh.tensor_size, num_dp=mesh.data_size)
        start_communication()
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its seeds and its topology
            super().__init__(
                [LayerSpec(spec.module, *spec.arguments) for spec in specs], topology=topology, loss_fn=loss
            )
        # DeepSpeed makes groups of its own over the same ranks, which nothing but its default timeout bounds.
        self._grid.dp_proc_group = parallel_state.get_data_parallel_group()
        self._grid.pp_proc_group = parallel_state.get_pipeline_model_parallel_group()
        self._grid.ds_model_proc_group = parallel_state.get_model_parallel_group()
        self._grid.slice_proc_group = parallel_state.get_tensor_model_parallel_group()

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The stages of this rank in order. A header that nobody has named crosses to the host, which waits for it."""
        *tensors, header = inputs
        outputs = super().forward((*tensors, self.headers.popleft() if self.headers else header.cpu()))
        if self._local_stop == self._num_layers:
            return outputs
        return tuple(Travelling(*outputs)._replace(header=header))

    def _partition_layers(self, method: str = "") -> None:
        # DeepSpeed's own methods build every layer to count it, or count norm and heads as layers.
        self.parts = self._boundaries
        stage = self._topo.get_coord(self.global_rank).pipe
        self._set_bounds(self.parts[stage], self.parts[stage + 1])

//! The norm of a family: one of two operators behind one call, so that blocks and the head do not ask which.

use tessera_ops::{OpError, Queue, View, ViewMut, layer_norm, rms_norm};

use crate::config::{ModelConfig, NormKind};

/// A norm and its ε.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    kind: NormKind,
    epsilon: f64,
}

impl Norm {
    pub(crate) fn of(config: &ModelConfig) -> Self {
        Self { kind: config.norm, epsilon: config.norm_epsilon }
    }

    /// Elements of what the forward of `rows` rows leaves for the backward.
    pub(crate) fn statistics(self, rows: usize) -> usize {
        match self.kind {
            NormKind::RmsNorm => rows,
            NormKind::LayerNorm => 2 * rows,
        }
    }

    /// y = norm(x); x and y `[T, H]`.
    pub(crate) fn forward(
        self,
        queue: &Queue,
        x: View<'_>,
        weight: View<'_>,
        y: ViewMut<'_>,
        statistics: ViewMut<'_>,
    ) -> Result<(), OpError> {
        match self.kind {
            NormKind::RmsNorm => rms_norm::forward(queue, x, weight, self.epsilon, y, statistics),
            NormKind::LayerNorm => {
                let (mean, inverse_deviation) = statistics.split_at(x.shape().extents()[0])?;
                layer_norm::forward(queue, x, weight, self.epsilon, y, mean, inverse_deviation)
            }
        }
    }

    /// Adds the gradients of x and of the weight.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn backward(
        self,
        queue: &Queue,
        dy: View<'_>,
        x: View<'_>,
        weight: View<'_>,
        statistics: View<'_>,
        dx: ViewMut<'_>,
        dweight: ViewMut<'_>,
    ) -> Result<(), OpError> {
        match self.kind {
            NormKind::RmsNorm => rms_norm::backward(queue, dy, x, weight, statistics, dx, dweight),
            NormKind::LayerNorm => {
                let rows = x.shape().extents()[0];
                let (mean, inverse_deviation) = (statistics.range(0, rows)?, statistics.range(rows, rows)?);
                layer_norm::backward(queue, dy, x, weight, mean, inverse_deviation, dx, dweight)
            }
        }
    }
}

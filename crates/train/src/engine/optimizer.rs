//! The update rule of a run, applied to one unit's shard.

use tessera_dist::{DistError, UnitSize, UnitState};
use tessera_ops::{DType, OpError, Queue, View, ViewMut, adamw, cast, lion};

use crate::spec::OptimizerSpec;

/// The update rule, with the peak of the learning rate that the decoupled rules measure their weight decay by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Optimizer {
    /// The rule and its settings.
    pub spec: OptimizerSpec,
    /// The learning rate at the schedule's highest.
    pub peak_learning_rate: f64,
}

/// One rank's slice of a unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice {
    pub size: UnitSize,
    pub rank: usize,
    pub world_size: usize,
}

/// What an update changes.
pub(super) struct Change<'a> {
    pub slice: Slice,
    pub state: &'a mut UnitState,
    /// The same weights in the dtype that is computed in, where they are kept.
    pub gathered: Option<ViewMut<'a>>,
}

impl Slice {
    /// How many of the slice's first elements have weight decay.
    fn decayed(&self) -> usize {
        let length = self.size.shard(self.world_size);
        self.size.decayed.saturating_sub(self.rank * length).min(length)
    }
}

impl Optimizer {
    /// The class's name in a checkpoint.
    pub fn class_name(&self) -> &'static str {
        match self.spec {
            OptimizerSpec::AdamW(_) => "AdamW",
            OptimizerSpec::DecoupledAdamW(_) => "DecoupledAdamW",
            OptimizerSpec::DecoupledLionW(_) => "DecoupledLionW",
        }
    }

    /// The names of the moments in a checkpoint, in the order in which units hold them.
    pub fn moments(&self) -> &'static [&'static str] {
        match self.spec {
            OptimizerSpec::AdamW(_) | OptimizerSpec::DecoupledAdamW(_) => &["exp_avg", "exp_avg_sq"],
            OptimizerSpec::DecoupledLionW(_) => &["exp_avg"],
        }
    }

    /// Updates a slice at `multiplier` times the peak learning rate.
    pub(super) fn update(
        &self,
        queue: &Queue,
        Change { slice, state, gathered }: Change<'_>,
        gradient: View<'_>,
        multiplier: f64,
        decision: View<'_>,
    ) -> Result<(), DistError> {
        let learning_rate = self.peak_learning_rate * multiplier;
        let UnitState { master, moments } = state;
        let mut master = master.view_mut(DType::F32);
        match (self.spec, moments.as_mut_slice()) {
            (OptimizerSpec::AdamW(adam) | OptimizerSpec::DecoupledAdamW(adam), [first, second]) => {
                let decoupled = matches!(self.spec, OptimizerSpec::DecoupledAdamW(_));
                let hyperparameters = adamw::Hyperparameters {
                    learning_rate,
                    betas: adam.betas.into(),
                    epsilon: adam.eps,
                    decay: adam.weight_decay * if decoupled { multiplier } else { learning_rate },
                };
                let state = adamw::State {
                    parameters: master,
                    first_moment: first.view_mut(DType::F32),
                    second_moment: second.view_mut(DType::F32),
                    rounded: gathered,
                };
                adamw::update(queue, state, gradient, slice.decayed(), hyperparameters, decision)?;
            }
            (OptimizerSpec::DecoupledLionW(settings), [moment]) => {
                let hyperparameters = lion::Hyperparameters {
                    learning_rate,
                    betas: settings.betas.into(),
                    decay: settings.weight_decay * multiplier,
                };
                let (decayed, moment) = (slice.decayed(), moment.view_mut(DType::F32));
                lion::update(queue, master.reborrow(), gradient, moment, decayed, hyperparameters, decision)?;
                if let Some(gathered) = gathered {
                    cast::forward(queue, master.as_view(), gathered)?;
                }
            }
            (_, moments) => {
                return Err(DistError::Op(OpError::Shape {
                    operator: "optimizer",
                    argument: "moments",
                    found: vec![moments.len()],
                    expected: format!("{}", self.moments().len()),
                }));
            }
        }
        Ok(())
    }
}

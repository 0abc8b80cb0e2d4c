//! The names of the metrics, in one place, as Composer and LLM Foundry log them.

/// The loss of a step in nats for each loss token, a mixture's balancing loss included.
pub const LOSS: &str = "loss/train/total";

/// The cross-entropy's part of [`LOSS`], logged for models with experts.
pub const CROSS_ENTROPY_LOSS: &str = "loss/train/loss";
/// The load-balancing loss's part of [`LOSS`], logged for models with experts.
pub const LOAD_BALANCING_LOSS: &str = "loss/train/lbl";

/// The prefix of the metrics that are taken from the training batch itself.
pub const TRAIN_PREFIX: &str = "metrics/train/";
/// Mean cross-entropy of the batch's loss tokens, in nats.
pub const TRAIN_CROSS_ENTROPY: &str = "metrics/train/LanguageCrossEntropy";
/// The exponential of [`TRAIN_CROSS_ENTROPY`].
pub const TRAIN_PERPLEXITY: &str = "metrics/train/LanguagePerplexity";
/// Share of the batch's loss tokens that the model ranks first, 0 to 1.
pub const TRAIN_ACCURACY: &str = "metrics/train/TokenAccuracy";

/// The prefix of the metrics of the evaluation data.
pub const EVAL_PREFIX: &str = "metrics/eval/";
/// Mean cross-entropy of the evaluation data's loss tokens, in nats.
pub const EVAL_CROSS_ENTROPY: &str = "metrics/eval/LanguageCrossEntropy";
/// The exponential of [`EVAL_CROSS_ENTROPY`].
pub const EVAL_PERPLEXITY: &str = "metrics/eval/LanguagePerplexity";
/// Share of the evaluation data's loss tokens that the model ranks first, 0 to 1.
pub const EVAL_ACCURACY: &str = "metrics/eval/TokenAccuracy";

/// Batches done before this line's: a training line's own batch, counted from 0; batches done for an evaluation.
pub const BATCH: &str = "time/batch";
/// Epochs completed.
pub const EPOCH: &str = "time/epoch";
/// Rows trained on.
pub const SAMPLE: &str = "time/sample";
/// Tokens trained on, padding not counted.
pub const TOKEN: &str = "time/token";
/// Batches done in this epoch.
pub const BATCH_IN_EPOCH: &str = "time/batch_in_epoch";
/// Rows trained on in this epoch.
pub const SAMPLE_IN_EPOCH: &str = "time/sample_in_epoch";
/// Tokens trained on in this epoch.
pub const TOKEN_IN_EPOCH: &str = "time/token_in_epoch";
/// Hours spent in training steps.
pub const TRAIN_HOURS: &str = "time/train";
/// Hours spent in evaluation.
pub const EVAL_HOURS: &str = "time/val";
/// Hours spent in all.
pub const TOTAL_HOURS: &str = "time/total";
/// Hours of training steps still to come.
pub const REMAINING_HOURS: &str = "time/remaining_estimate";

/// The prefix of the learning rates; see [`learning_rate`].
pub const LEARNING_RATE_PREFIX: &str = "lr-";
/// L2 norm of the whole gradient before clipping.
pub const GRADIENT_NORM: &str = "l2_norm/grad/global";
/// Packed rows that a device works on at once.
pub const MICROBATCH_SIZE: &str = "trainer/device_train_microbatch_size";

/// Batches in a second.
pub const BATCHES_PER_SECOND: &str = "throughput/batches_per_sec";
/// Rows in a second.
pub const SAMPLES_PER_SECOND: &str = "throughput/samples_per_sec";
/// Tokens in a second.
pub const TOKENS_PER_SECOND: &str = "throughput/tokens_per_sec";
/// Floating-point operations in a second.
pub const FLOPS_PER_SECOND: &str = "throughput/flops_per_sec";
/// Batches in a second, divided by the number of devices.
pub const DEVICE_BATCHES_PER_SECOND: &str = "throughput/device/batches_per_sec";
/// Rows in a second on one device.
pub const DEVICE_SAMPLES_PER_SECOND: &str = "throughput/device/samples_per_sec";
/// Tokens in a second on one device.
pub const DEVICE_TOKENS_PER_SECOND: &str = "throughput/device/tokens_per_sec";
/// Floating-point operations in a second on one device.
pub const DEVICE_FLOPS_PER_SECOND: &str = "throughput/device/flops_per_sec";
/// Model FLOPs utilisation: the share of a device's peak that the model's own operations reach, 0 to 1.
pub const MFU: &str = "throughput/device/mfu";

/// Memory in use now, in GB (10⁹ bytes).
pub const CURRENT_MEMORY: &str = "memory/current_allocated_mem";
/// The most memory in use so far, in GB (10⁹ bytes).
pub const PEAK_MEMORY: &str = "memory/peak_allocated_mem";

/// The learning rate of a parameter group: `lr-AdamW/group0`. `optimizer_class` is the class's name in PyTorch
/// or Composer: `AdamW`, `DecoupledAdamW`, `DecoupledLionW`.
pub fn learning_rate(optimizer_class: &str, group: usize) -> String {
    format!("{LEARNING_RATE_PREFIX}{optimizer_class}/group{group}")
}

// The fields of the step's statistics and decision (both fp64), as crates/ops/src/step.rs numbers them.
#pragma once

enum Statistic { LOSS_SUM = 0, HITS = 1, SQUARED_NORM = 2, BALANCE_LOSS = 3 };

enum Decision { CLIP_FACTOR = 0, APPLY = 1, UPDATES = 2, SKIPPED_IN_A_ROW = 3, SKIPPED = 4 };

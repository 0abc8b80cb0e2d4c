//! What this processor does at most, as a line of JSON: floating-point operations and bytes copied in a second, of all threads together.
//! `scripts/bench-vs-torch` holds steps against it; RAYON_NUM_THREADS says how many threads.

use tessera_benches::rooflines::Ceilings;

fn main() {
    let Ceilings { operations, bytes } = Ceilings::measure();
    println!("{}", serde_json::json!({"operations": operations, "bytes": bytes}));
}

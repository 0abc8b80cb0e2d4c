//! Memory and time of a training step on one row of 2,048 to 32,768 tokens, blocks recomputed: memory must grow linearly with
//! the row, time by attention's square.
//!
//! Each length is a process of its own, since a process's peak memory never falls. Beside the time stands the processor time,
//! which tells more where the machine has other work. Linux only: both come from /proc.

use std::error::Error;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use tessera_benches::{Rows, forward_backward, median, update};
use tessera_train::engine::{MemoryPlan, Sharing};

const LENGTHS: [u32; 5] = [2048, 4096, 8192, 16_384, 32_768];
/// Tokens that are trained on at each length, at least one step.
const TOKENS: u32 = 16_384;
const VOCABULARY: u32 = 8192;
const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"], "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 688,
  "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32768,
  "rope_theta": 500000.0, "tie_word_embeddings": true
}"#;

/// What one process found, as JSON.
fn measure(length: u32) -> Result<Value, Box<dyn Error>> {
    let row = Rows { count: 1, tokens: length };
    let mut engine = row.engine(CONFIG, true);
    let sharing = Sharing::of(engine.units().mesh());
    let plan = MemoryPlan::new(engine.model(), sharing, engine.settings())?;
    // A short step touches the weights and what belongs to them for the first time.
    let first = Rows { tokens: 256, ..row }.batch(VOCABULARY);
    forward_backward(&mut engine, &first)?;
    update(&mut engine)?;
    let batch = row.batch(VOCABULARY);
    let (mut seconds, mut processor_seconds) = (Vec::new(), Vec::new());
    for _ in 0..TOKENS.div_ceil(length) {
        let (start, before) = (Instant::now(), self::processor_seconds()?);
        forward_backward(&mut engine, &batch)?;
        update(&mut engine)?;
        seconds.push(start.elapsed().as_secs_f64());
        processor_seconds.push(self::processor_seconds()? - before);
    }
    Ok(json!({
        "planned": plan.engine_bytes(),
        "peak": peak_bytes()?,
        "seconds": median(seconds),
        "processor_seconds": median(processor_seconds),
    }))
}

/// Processor time of all threads so far.
fn processor_seconds() -> Result<f64, Box<dyn Error>> {
    /// The kernel counts in hundredths of a second here, on every common platform.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(") ").ok_or("no fields in /proc/self/stat")?;
    // After the name: 11 fields, then user and system time.
    let times = fields.split(' ').skip(11).take(2).map(str::parse::<f64>);
    Ok(times.sum::<Result<f64, _>>()? / TICKS)
}

/// The largest resident set that this process has had.
fn peak_bytes() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM in /proc/self/status")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes << 10)
}

/// What a process of its own found at this length.
fn measured(length: u32) -> Result<Value, Box<dyn Error>> {
    let output = Command::new(std::env::current_exe()?).arg(length.to_string()).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn main() -> Result<(), Box<dyn Error>> {
    if let Some(length) = std::env::args().skip(1).find_map(|argument| argument.parse().ok()) {
        println!("{}", measure(length)?);
        return Ok(());
    }
    println!("| tokens | planned MiB | peak MiB | peak bytes/token more | ms/token | processor ms/token |");
    let mut before: Option<(u32, f64)> = None;
    for length in LENGTHS {
        let found = measured(length)?;
        let [planned, peak, seconds, processor_seconds] = ["planned", "peak", "seconds", "processor_seconds"]
            .map(|key| found[key].as_f64().unwrap_or(f64::NAN));
        let more = before.map_or("–".to_owned(), |(shorter, less)| {
            format!("{:.0}", (peak - less) / f64::from(length - shorter))
        });
        println!(
            "| {length:>6} | {:>11.0} | {:>8.0} | {more:>21} | {:>8.3} | {:>18.3} |",
            planned / f64::from(1 << 20),
            peak / f64::from(1 << 20),
            seconds * 1e3 / f64::from(length),
            processor_seconds * 1e3 / f64::from(length),
        );
        before = Some((length, peak));
    }
    Ok(())
}

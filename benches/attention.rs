//! Attention over one row of 8,192 tokens that is one document, or several of equal length: its time must follow the sum of the
//! documents' squared lengths. 8 heads of 64, 4 for keys and values. A line for each: tokens of a document, milliseconds forward, backward
//! (medians of the rounds, in which the lengths take turns), and both per million squared tokens. `scripts/bench-vs-torch attention` puts
//! PyTorch's beside it.

#![allow(clippy::unwrap_used)]

use std::time::Instant;

use tessera_benches::median;
use tessera_ops::attention::{self, Heads};
use tessera_ops::{Home, Queue, View, ViewMut, random};

const TOKENS: usize = 8192;
const LENGTHS: [usize; 5] = [8192, 4096, 2048, 1024, 512];
const HEADS: Heads = Heads { query: 8, key_value: 4, size: 64, window: None };
const ROUNDS: usize = 5;

struct Row {
    qkv: Vec<f32>,
    doutput: Vec<f32>,
    output: Vec<f32>,
    log_sum_exp: Vec<f32>,
    dqkv: Vec<f32>,
    scratch: Vec<f32>,
}

impl Row {
    fn new() -> Self {
        let drawn = |count| {
            let mut values = vec![0.0; count];
            random::normal(count as u64, 0, 1.0, ViewMut::of(&mut values)).unwrap();
            values
        };
        let (width, output_width) = (HEADS.row_width(), HEADS.output_width());
        Self {
            qkv: drawn(TOKENS * width),
            doutput: drawn(TOKENS * output_width),
            output: vec![0.0; TOKENS * output_width],
            log_sum_exp: vec![0.0; TOKENS * HEADS.query],
            dqkv: vec![0.0; TOKENS * width],
            scratch: vec![0.0; attention::backward_scratch(Home::Host, HEADS, TOKENS)],
        }
    }

    /// Seconds of a forward and a backward pass.
    fn pass(&mut self, length: usize) -> (f64, f64) {
        let queue = &Queue::cpu();
        let cu_seqlens: Vec<u32> = (0..=TOKENS as u32).step_by(length).collect();
        let (wide, narrow) = ([TOKENS, HEADS.row_width()], [TOKENS, HEADS.output_width()]);
        let (qkv, cu_seqlens) = (View::of(&self.qkv).reshape(wide).unwrap(), View::of(&cu_seqlens));
        let began = Instant::now();
        let output = ViewMut::of(&mut self.output).reshape(narrow).unwrap();
        let log_sum_exp = ViewMut::of(&mut self.log_sum_exp).reshape([TOKENS, HEADS.query]).unwrap();
        attention::forward(queue, qkv, cu_seqlens, HEADS, output, log_sum_exp).unwrap();
        let forward = began.elapsed().as_secs_f64();
        let doutput = View::of(&self.doutput).reshape(narrow).unwrap();
        let output = View::of(&self.output).reshape(narrow).unwrap();
        let log_sum_exp = View::of(&self.log_sum_exp).reshape([TOKENS, HEADS.query]).unwrap();
        let dqkv = ViewMut::of(&mut self.dqkv).reshape(wide).unwrap();
        let scratch = ViewMut::of(&mut self.scratch);
        attention::backward(queue, doutput, qkv, output, log_sum_exp, cu_seqlens, HEADS, dqkv, scratch)
            .unwrap();
        (forward, began.elapsed().as_secs_f64() - forward)
    }
}

fn main() {
    let mut row = Row::new();
    let mut times: Vec<Vec<(f64, f64)>> = vec![Vec::new(); LENGTHS.len()];
    for round in 0..=ROUNDS {
        for (times, &length) in times.iter_mut().zip(&LENGTHS) {
            let pass = row.pass(length);
            // The first touches the memory.
            if round > 0 {
                times.push(pass);
            }
        }
    }
    println!("tokens\tforward ms\tbackward ms\tms per 1e6 squared tokens");
    for (times, length) in times.into_iter().zip(LENGTHS) {
        let (forward, backward): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
        let (forward, backward) = (1e3 * median(forward), 1e3 * median(backward));
        let squares = (TOKENS * length) as f64 / 1e6;
        println!("{length}\t{forward:.1}\t{backward:.1}\t{:.2}", (forward + backward) / squares);
    }
}

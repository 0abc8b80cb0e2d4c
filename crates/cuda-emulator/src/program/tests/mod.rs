//! Each family of opcodes against a scalar definition in Rust: one thread an input, edge cases and random bits.
#![allow(clippy::unwrap_used)]

mod floats;
mod integers;

use half::{bf16, f16};

use crate::{Checks, Emulator, Options, Random};

/// The registers of a case by the letter in its signature: `h` 16 bits, `w` 32, `d` 64, `p` a predicate.
fn declaration(letter: u8, name: &str) -> String {
    let kind = match letter {
        b'h' => "b16",
        b'w' => "b32",
        b'd' => "b64",
        _ => "pred",
    };
    format!(".reg .{kind} {name};\n")
}

fn from_wide(letter: u8, name: &str, wide: &str) -> String {
    match letter {
        b'h' => format!("cvt.u16.u64 {name}, {wide};\n"),
        b'w' => format!("cvt.u32.u64 {name}, {wide};\n"),
        b'd' => format!("mov.b64 {name}, {wide};\n"),
        _ => format!("and.b64 {wide}, {wide}, 1;\nsetp.ne.u64 {name}, {wide}, 0;\n"),
    }
}

fn to_wide(letter: u8, name: &str) -> String {
    match letter {
        b'h' => format!("cvt.u64.u16 %out, {name};\n"),
        b'w' => format!("cvt.u64.u32 %out, {name};\n"),
        b'd' => format!("mov.b64 %out, {name};\n"),
        _ => format!("selp.u64 %out, 1, 0, {name};\n"),
    }
}

/// A kernel that applies `code`, which reads a, b, c and writes r, to the inputs of its thread.
fn kernel(code: &str, inputs: &str, output: u8) -> String {
    let mut body = declaration(output, "r");
    for (at, letter) in inputs.bytes().enumerate() {
        let name = ["a", "b", "c"][at];
        body += &declaration(letter, name);
        body += &format!("ld.global.u64 %in, [%place+{}];\n", 8 * at);
        body += &from_wide(letter, name, "%in");
    }
    format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry test(.param .u64 data, .param .u64 results)\n{{\n\
         .reg .b64 %place, %to, %in, %out;\n.reg .b32 %t;\n\
         mov.u32 %t, %tid.x;\nld.param.u64 %place, [data];\nld.param.u64 %to, [results];\n\
         mad.wide.u32 %place, %t, 24, %place;\nmad.wide.u32 %to, %t, 8, %to;\n\
         {body}{code}\n{}st.global.u64 [%to], %out;\nret;\n}}\n",
        to_wide(output, "r")
    )
}

const EDGES: [u64; 14] = [
    0,
    1,
    2,
    31,
    0x7fff,
    0x8000_8000,
    0x7fff_ffff,
    0xffff_ffff,
    0x3f80_0000,
    0x7f80_0000,
    0x7fc0_0001,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    u64::MAX,
];

fn inputs() -> Vec<[u64; 3]> {
    let mut random = Random::new(1);
    let mut number = |at: usize| match random.below(3) {
        0 => EDGES[random.below(EDGES.len() as u64) as usize],
        // Numbers near 1, where sums and roundings meet.
        1 => {
            u64::from((random.uniform() as f32 * 4.0 - 2.0).to_bits())
                | ((random.bits() << 32) * (at as u64 & 1))
        }
        _ => random.bits(),
    };
    (0..1024).map(|_| [number(0), number(1), number(2)]).collect()
}

fn run(code: &str, registers: &str, output: u8, inputs: &[[u64; 3]]) -> Vec<u64> {
    let mut device = Emulator::new(Options { checks: Checks::ALL, ..Options::default() });
    let module = device
        .load_module(&kernel(code, registers, output))
        .unwrap_or_else(|error| panic!("{code}: {error}"));
    let function = module.function("test").unwrap_or_else(|error| panic!("{code}: {error}"));
    let data = device.upload(inputs.as_flattened()).unwrap();
    let results = device.alloc(8 * inputs.len() as u64).unwrap();
    let block = [inputs.len() as u32, 1, 1];
    let report = device.launch(&function, [1, 1, 1], block, 0, &[data.into(), results.into()]).unwrap();
    assert!(report.hazards.is_empty(), "{code}: {}", report.hazards[0]);
    device.download(results, inputs.len()).unwrap()
}

/// `code` against `expected`; results that are NaN in `float` bits need only both be NaN.
fn check_as(code: &str, registers: &str, output: u8, float: u32, expected: impl Fn(u64, u64, u64) -> u64) {
    let inputs = inputs();
    let is_nan = |bits: u64| match float {
        32 => f32::from_bits(bits as u32).is_nan(),
        64 => f64::from_bits(bits).is_nan(),
        16 => f16::from_bits(bits as u16).is_nan(),
        17 => bf16::from_bits(bits as u16).is_nan(),
        _ => false,
    };
    for (input, found) in inputs.iter().zip(run(code, registers, output, &inputs)) {
        let expected = expected(input[0], input[1], input[2]);
        let same = found == expected || is_nan(found) && is_nan(expected);
        assert!(same, "{code} of {input:x?}: found {found:#x}, expected {expected:#x}");
    }
}

fn check(code: &str, registers: &str, output: u8, expected: impl Fn(u64, u64, u64) -> u64) {
    check_as(code, registers, output, 0, expected);
}

fn word(function: impl Fn(u32, u32, u32) -> u32) -> impl Fn(u64, u64, u64) -> u64 {
    move |a, b, c| u64::from(function(a as u32, b as u32, c as u32))
}

fn float(function: impl Fn(f32, f32, f32) -> f32) -> impl Fn(u64, u64, u64) -> u64 {
    let from = |bits: u64| f32::from_bits(bits as u32);
    move |a, b, c| u64::from(function(from(a), from(b), from(c)).to_bits())
}

fn double(function: impl Fn(f64, f64, f64) -> f64) -> impl Fn(u64, u64, u64) -> u64 {
    move |a, b, c| function(f64::from_bits(a), f64::from_bits(b), f64::from_bits(c)).to_bits()
}

/// A form that is not there is refused by name and line when the kernel is asked for, not silently approximated.
#[test]
fn an_unknown_form_is_named() {
    let text = kernel("add.rna.f32 r, a, b;", "ww", b'w');
    let mut device = Emulator::new(Options::default());
    let message = device.load_module(&text).unwrap().function("test").unwrap_err().to_string();
    assert!(message.contains("the emulator does not have add.rna.f32"), "{message}");
    let text = kernel("add.f32 r, a, x;", "ww", b'w');
    let message = device.load_module(&text).unwrap().function("test").unwrap_err().to_string();
    assert!(message.ends_with("'x' is not declared"), "{message}");
}

#![allow(clippy::unwrap_used)]

use super::{Initial, Module, Operand, Space, Statement};
use crate::program::{Symbols, decode};
use crate::random::Random;

const TEXT: &str = r#"
.version 9.4
.target sm_80
.address_size 64
.extern .func (.param .b32 func_retval0) vprintf (.param .b64 a, .param .b64 b);
.const .align 4 .b8 table[2][2] = {{1, 2}, {3, -1}};
.global .align 8 .u64 pointer = table+2;
.extern .shared .align 16 .b8 raw[];
/* a comment
   of two lines */
.visible .entry scale(
	.param .u64 .ptr .global .align 16 scale_param_0,
	.param .align 8 .b8 scale_param_1[24]
)
.maxntid 256, 1, 1
{
	.reg .pred %p<3>;
	.reg .b32 	%r<9>;
	{ .reg .f32 x; mov.f32 x, 0f3F800000; }
$L__BB0_1:
	.pragma "nounroll";
	@!%p1 bra $L__BB0_1;
	setp.lt.and.s32 %p1|%p2, %r1, -3, !%p2;
	ld.global.v2.f32 {%r1, _}, [%r2+-8];
	call.uni (retval0), vprintf, (%r1, %r2);
	ret;
}
"#;

#[test]
fn a_module_is_read_with_its_lines() {
    let module = Module::parse(TEXT).unwrap();
    assert!(module.functions["vprintf"].body.is_none());
    let table = &module.variables[0];
    assert_eq!((table.name.as_str(), table.space, table.size), ("table", Space::Const, 4));
    assert!(matches!(&table.initial[3], Initial::Bytes(bytes) if bytes == &[255]));
    assert!(matches!(&module.variables[1].initial[0],
        Initial::Address { symbol, offset: 2 } if symbol == "table"));
    assert_eq!(module.variables[2].size, 0);

    let scale = &module.functions["scale"];
    assert!(scale.is_entry);
    assert_eq!((scale.parameters[1].size, scale.parameters[1].alignment), (24, 8));
    let instructions: Vec<_> = (scale.body.as_ref().unwrap().iter())
        .filter_map(|statement| match statement {
            Statement::Instruction(instruction) => Some(instruction),
            _ => None,
        })
        .collect();
    let branch = instructions[1];
    assert_eq!((branch.opcode.as_str(), branch.line), ("bra", 22));
    assert!(branch.guard.as_ref().unwrap().negated);
    let compare = instructions[2];
    assert!(matches!(&compare.operands[0], Operand::Pair(..)));
    assert_eq!(compare.operands[2], Operand::Integer(3_u64.wrapping_neg()));
    assert_eq!(compare.operands[3], Operand::Not("%p2".to_owned()));
    assert!(matches!(&instructions[3].operands[1], Operand::Address { offset: -8, .. }));
    assert!(matches!(&instructions[4].operands[2], Operand::List(list) if list.len() == 2));
}

#[test]
fn a_mistake_is_named_with_its_line() {
    let message = Module::parse(&TEXT.replace("ret;", "add.s32 %r1 %r2;")).unwrap_err().to_string();
    assert_eq!(message, "PTX line 26: found '%r2', expected ',' or ';' after an operand");
}

/// Deletions, repetitions and flipped bytes: an error or a module, never a panic or a hang.
#[test]
fn broken_text_never_panics() {
    let mut random = Random::new(11);
    for _ in 0..20_000 {
        let mut bytes = TEXT.as_bytes().to_vec();
        for _ in 0..=random.below(4) {
            if bytes.is_empty() {
                break;
            }
            let at = random.below(bytes.len() as u64) as usize;
            match random.below(4) {
                0 => bytes[at] = random.below(128) as u8,
                1 => drop(bytes.drain(at..(at + 9).min(bytes.len()))),
                2 => bytes.truncate(at.max(1)),
                _ => bytes[at] = b"{}[](),;.%@!<>\"/*0"[random.below(18) as usize],
            }
        }
        if let Ok(module) = Module::parse(&String::from_utf8_lossy(&bytes)) {
            for kernel in module.kernels() {
                let _ = decode(&module, kernel, &Symbols::new());
            }
        }
    }
}

//! `assert` and `printf` of device code.

use super::access::LaneAccess;
use super::launch::Context;
use super::race::Kind;
use super::registers::{LANES, Mask, lanes};
use super::warp::Warp;
use crate::EmulatorError;
use crate::program::{CallArgument, Instruction};
use crate::ptx::Space;

/// No message is longer; a pointer to something else could seem to be.
const LONGEST_TEXT: u64 = 4096;

impl Warp {
    /// An argument of a call, out of the lane's local memory.
    fn argument(&self, lane: usize, argument: CallArgument) -> u64 {
        let length = self.local.len() / LANES;
        let mut bytes = [0; 8];
        let size = argument.size.min(8);
        bytes[..size].copy_from_slice(&self.local[lane * length + argument.offset..][..size]);
        u64::from_le_bytes(bytes)
    }

    fn read_bytes(
        &mut self,
        lane: usize,
        address: u64,
        size: usize,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<u64, EmulatorError> {
        let access = LaneAccess { lane, space: Space::Generic, address, size, kind: Kind::Read };
        let found = self.locate(&access, instruction, context)?;
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(found);
        Ok(u64::from_le_bytes(bytes))
    }

    fn text(
        &mut self,
        lane: usize,
        address: u64,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<String, EmulatorError> {
        let mut bytes = Vec::new();
        for at in 0..LONGEST_TEXT {
            match self.read_bytes(lane, address + at, 1, instruction, context)? {
                0 => break,
                byte => bytes.push(byte as u8),
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn assert_fail(
        &mut self,
        arguments: &[CallArgument; 4],
        active: Mask,
        instruction: &Instruction,
        context: &mut Context,
    ) -> EmulatorError {
        let lane = active.trailing_zeros() as usize;
        let [message, file, line, function] = arguments.map(|argument| self.argument(lane, argument));
        let mut text = |address| self.text(lane, address, instruction, context);
        let (message, file, function) = match (text(message), text(file), text(function)) {
            (Ok(message), Ok(file), Ok(function)) => (message, file, function),
            (Err(error), ..) | (_, Err(error), _) | (.., Err(error)) => return error,
        };
        let problem = format!("assertion '{message}' failed in {function}, {file}:{line}");
        context.fault(self.index, lane, instruction, problem)
    }

    /// Appends to the report what each lane prints; the call's result is the number of arguments, as in CUDA.
    pub fn print(
        &mut self,
        format: CallArgument,
        arguments: CallArgument,
        target: Option<usize>,
        active: Mask,
        instruction: &Instruction,
        context: &mut Context,
    ) -> Result<(), EmulatorError> {
        for lane in lanes(active) {
            let format = self.argument(lane, format);
            let format = self.text(lane, format, instruction, context)?;
            let mut at = self.argument(lane, arguments);
            let mut count = 0_u32;
            let mut printed = String::new();
            for piece in pieces(&format) {
                let Piece::Value { conversion, wide } = piece else {
                    if let Piece::Text(text) = piece {
                        printed.push_str(text);
                    }
                    continue;
                };
                let size = if wide { 8 } else { 4 };
                at = at.next_multiple_of(size as u64);
                let bits = self.read_bytes(lane, at, size, instruction, context)?;
                at += size as u64;
                count += 1;
                match conversion {
                    's' => printed.push_str(&self.text(lane, bits, instruction, context)?),
                    _ => printed.push_str(&show(conversion, wide, bits)),
                }
            }
            context.report.printed.push_str(&printed);
            if let Some(offset) = target {
                let length = self.local.len() / LANES;
                self.local[lane * length + offset..][..4].copy_from_slice(&count.to_le_bytes());
            }
        }
        Ok(())
    }
}

enum Piece<'f> {
    Text(&'f str),
    Value { conversion: char, wide: bool },
}

/// A format's text and conversions; flags, widths and precisions are left out of what is printed.
fn pieces(format: &str) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        found.push(Piece::Text(&rest[..start]));
        rest = &rest[start + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            found.push(Piece::Text("%"));
            rest = after;
            continue;
        }
        let Some(end) = rest.find(|letter: char| "diuxXoceEfFgGaAsp".contains(letter)) else { break };
        let conversion = char::from(rest.as_bytes()[end]);
        let long = rest[..end].contains(['l', 'z', 'j', 't']);
        found.push(Piece::Value { conversion, wide: long || "eEfFgGaAsp".contains(conversion) });
        rest = &rest[end + 1..];
    }
    found.push(Piece::Text(rest));
    found
}

fn show(conversion: char, wide: bool, bits: u64) -> String {
    match conversion {
        'd' | 'i' if wide => (bits as i64).to_string(),
        'd' | 'i' => (bits as i32).to_string(),
        'c' => char::from(bits as u8).to_string(),
        'x' | 'X' => format!("{bits:x}"),
        'o' => format!("{bits:o}"),
        'p' => format!("{bits:#x}"),
        'u' => bits.to_string(),
        _ => f64::from_bits(bits).to_string(),
    }
}
